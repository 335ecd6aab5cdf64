# Two commands from nothing: `make demo` and `make test`. Each makes the environment it needs in .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check clean

demo: $(VENV)/ready
	$(RUN) run_wav2vec2_pretraining_no_trainer.py --config configs/demo_pretraining.yaml --overwrite_output_dir

test: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(RUN) -m pytest

check: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(RUN) -m pytest tests/test_architecture.py

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; make PYTHON=python3.11, say"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "this Python cannot make environments; on Debian: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/ready-dev: requirements-dev.txt requirements-tracking.txt requirements-decoding.txt requirements-export.txt $(VENV)/ready
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) prepared runs
