# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint docs figures audit dist embedded-model clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[train,dev,vocals,faces,serve,web,docs,ray]"
	touch $@

demo: $(STAMP)
	mkdir -p out
	$(BIN)/hallo3 animate src/hallo3/embedded/sample/portrait.png src/hallo3/embedded/sample/speech.wav \
		--prompt "$$(cat src/hallo3/embedded/sample/prompt.txt)" --seed 7 --overwrite -o out/demo.mp4

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks integrations docs
	$(BIN)/ruff format --check src tests benchmarks integrations docs
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

figures: $(VENV)/.installed-dev
	for script in pipeline clips guidance memory operations; do $(BIN)/python docs/figures/$$script.py || exit 1; done

# Known vulnerabilities of what is installed here, by PyPI's advisories; its own environment, as it would change this one.
audit: $(VENV)/.installed-dev
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet 'pip-audit>=2.9,<3'
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' > build/installed.txt
	build/audit/bin/pip-audit --no-deps --disable-pip --strict -r build/installed.txt

# Source archive and wheel, the wheel from the archive: what an earlier build left in build/ gets into neither.
dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build

embedded-model: $(VENV)/.installed-dev
	$(BIN)/python -m hallo3.training.embedded all --work work/embedded \
		$(if $(PORTRAITS),--portraits "$(PORTRAITS)") $(if $(RECORDINGS),--recordings "$(RECORDINGS)")

clean:
	rm -rf out build dist
