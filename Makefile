# Two commands from nothing: `make demo` and `make test`. Each makes the environment it needs in .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
FINETUNE := $(RUN) run_ctc_finetuning.py --config configs/demo_finetuning.yaml --overwrite_output_dir
DECODE := $(RUN) run_ctc_decoding.py --dataset_name demo_corpus --dataset_split_names test --validation_split_names validation
# Python 3.13 has no wheel of the beam search, so these may fail without ending the demo.
LM := --decoder beam --lm_unit token --lm_path runs/demo_letters.arpa --tune 10
QUICK := architecture documents recipes batching masking schedules measures error_rates transcripts vocabularies decoding windows collapse

.PHONY: demo test check clean

demo: $(VENV)/ready-demo
	$(RUN) run_wav2vec2_pretraining_no_trainer.py --config configs/demo_pretraining.yaml --overwrite_output_dir
	$(FINETUNE) --model_name_or_path runs/demo_pretraining --output_dir runs/demo_finetuning
	$(FINETUNE) --config_name runs/demo_pretraining --output_dir runs/demo_from_random_weights
	rm -rf runs/demo_scores
	$(RUN) -m wavtrain.recognition.ngrams letters 6 runs/demo_letters.arpa runs/demo_finetuning/training_text.txt
	$(DECODE) --model_name_or_path runs/demo_finetuning --output_dir runs/demo_scores/pretrained
	$(DECODE) --model_name_or_path runs/demo_from_random_weights --output_dir runs/demo_scores/random
	-$(DECODE) --model_name_or_path runs/demo_finetuning --output_dir runs/demo_scores/pretrained_lm $(LM)
	-$(DECODE) --model_name_or_path runs/demo_from_random_weights --output_dir runs/demo_scores/random_lm $(LM)
	$(RUN) -m wavtrain.recognition.scores runs/demo_scores/*

test: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(RUN) -m pytest $(QUICK:%=tests/test_%.py) -k "not documents_runs and not form_of_corpus"

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; make PYTHON=python3.11, say"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "this Python cannot make environments; on Debian: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/ready-demo: requirements-decoding.txt $(VENV)/ready
	$(RUN) -m pip install --quiet -r requirements-decoding.txt
	@touch $@

$(VENV)/ready-dev: requirements-dev.txt requirements-tracking.txt requirements-decoding.txt requirements-export.txt requirements-sweeps.txt requirements-deepspeed.txt $(VENV)/ready
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) prepared runs
