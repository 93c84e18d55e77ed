# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint embedded-model clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[train,dev,vocals,faces,serve]"
	touch $@

demo: $(STAMP)
	mkdir -p out
	$(BIN)/hallo3 animate src/hallo3/embedded/sample/portrait.png src/hallo3/embedded/sample/speech.wav \
		--prompt "$$(cat src/hallo3/embedded/sample/prompt.txt)" --seed 7 --overwrite -o out/demo.mp4

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks integrations
	$(BIN)/ruff format --check src tests benchmarks integrations
	$(BIN)/mypy

embedded-model: $(VENV)/.installed-dev
	$(BIN)/python -m hallo3.training.embedded all --work work/embedded \
		$(if $(PORTRAITS),--portraits "$(PORTRAITS)") $(if $(RECORDINGS),--recordings "$(RECORDINGS)")

clean:
	rm -rf out build dist
