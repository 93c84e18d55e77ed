"""Many clients on one server: is anyone's job lost, or given another's result, and does memory grow?

    python benchmarks/serving.py --clients 50 --tiny

Starts `hallo3 serve` in a process of its own, with a queue shorter than the clients are many. Each client sends its own
portrait, recording and seed, comes back when it is told that the queue is full, follows its job and fetches the result,
whose own record must name that seed and the hashes of those two files. --tiny: the tests' bundle of random weights, so
that the server is what is measured; else the embedded bundle. Exit code 1 if a job was lost or mixed up, or if the
server's memory in the last quarter of the run is over that in the second by more than a tenth.
"""

import argparse
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from hallo3.media.provenance import read_provenance
from hallo3.version import __version__

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny


def client(base: str, number: int, folder: Path) -> tuple[bool, bool, int, float]:
    """One client's visit: whether it got a result, whether that is its own, refusals met, seconds in all."""
    began, refusals = time.monotonic(), 0
    portrait, speech, got = (folder / f"{number}{end}" for end in (".png", ".wav", ".mp4"))
    pixels = np.random.default_rng(number).integers(0, 255, (tiny.HEIGHT, tiny.WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(portrait)
    tiny.write_wav(speech, tiny.speech(0.4) * (0.5 + number / 500))
    data = {"rights": "true", "settings": f'{{"no_face": true, "seed": {number}}}'}
    with httpx.Client(base_url=base, timeout=120, trust_env=False) as http:
        while True:
            files = {"portrait": portrait.read_bytes(), "speech": speech.read_bytes()}
            answer = http.post("/v1/jobs", files=files, data=data)
            if answer.status_code != 429:
                break
            refusals += 1
            time.sleep(float(answer.headers["retry-after"]))
        job = answer.raise_for_status().json()["id"]
        with http.stream("GET", f"/v1/jobs/{job}/events", timeout=None) as events:
            last = [line for line in events.iter_lines() if line.startswith("event:")][-1]
        if "done" not in last:
            return False, False, refusals, time.monotonic() - began
        got.write_bytes(http.get(f"/v1/jobs/{job}/result").raise_for_status().content)
    record = read_provenance(got) or {}
    hashes = {"portrait": digest(portrait), "speech": digest(speech)}
    own = record.get("seed") == number and record.get("inputs") == hashes
    return True, own, refusals, time.monotonic() - began


def digest(path: Path) -> str:
    return f"blake2b-128:{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"


def watch(base: str, memory: list[float], over: threading.Event) -> None:
    """The server's resident memory in MB, every second."""
    while not over.wait(1):
        text = httpx.get(f"{base}/metrics", timeout=60, trust_env=False).text
        found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        if found:
            memory.append(float(found[1]) / 1e6)


def measure(base: str, clients: int, folder: Path) -> bool:
    memory: list[float] = []
    over, began = threading.Event(), time.monotonic()
    watcher = threading.Thread(target=watch, args=(base, memory, over))
    watcher.start()
    with ThreadPoolExecutor(clients) as pool:
        visits = list(pool.map(lambda number: client(base, number, folder), range(clients)))
    took = time.monotonic() - began
    over.set()
    watcher.join()
    lost, mixed = sum(not made for made, *_ in visits), sum(made and not own for made, own, *_ in visits)
    quarter = max(1, len(memory) // 4)
    early, late = (statistics.median(part) for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
    longest = max(seconds for *_, seconds in visits)
    print(f"{time.strftime('%Y-%m-%d')}, hallo3 {__version__}, {os.cpu_count()} CPU cores")
    print(f"{clients} clients in {took:.0f} s: {lost} lost, {mixed} got another's result")
    print(f"{sum(count for *_, count, _ in visits)} times the queue was full; the longest visit took {longest:.0f} s")
    print(f"resident memory: {early:.0f} MB in the second quarter, {late:.0f} MB in the last")
    return not lost and not mixed and late <= 1.1 * early


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = str(tiny.write_bundle(folder / "tiny")) if options.tiny else "embedded"
        words = [sys.executable, "-m", "hallo3", "serve", "--port", "0", "--data", str(folder / "data")]
        words += ["--bundle", bundle, "--queue", str(options.queue), "--rate", "100000"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"http://[\d.:]+", process.stdout.readline())
            return 0 if found and measure(found[0], options.clients, folder) else 1
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
