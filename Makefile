# Every target sets up what it needs: the first one called creates .venv/, later ones re-use it.
PYTHON ?= python3
# Processes of the tests, about 2 GB each.
JOBS ?= 2
PY := .venv/bin/python
STAMP := .venv/.installed
# Links by which mypy finds the folders under the name that they are imported by.
LINKS := build/packages/classifier_lens
GROUNDINGDINO := .venv-groundingdino
# Options of the images in the documentation: five in a row and small files.
IMAGES := figures=docs/images max_columns=5 image_size=160 pdf=false threads=1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-slurm test-groundingdino check docs format evaluate bench figures images clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv/ with the versions of requirements.lock and this project in place (5.5 GB, minutes)
	@echo ".venv/ is up to date"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PYTHON=$(PYTHON): $$($(PYTHON) --version 2>&1); expected Python 3.11 or newer, e.g. make $(MAKECMDGOALS) PYTHON=python3.11"; \
	  exit 2; }
	@if [ -x $(PY) ]; then echo "Updating .venv/ to requirements.lock"; \
	else echo "Creating .venv/ with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; fi
	@echo "Installing $$(wc -l < requirements.lock) packages of requirements.lock (some minutes the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@echo "Installing classifier-lens itself, editable"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(LINKS):
	@mkdir -p $@
	@for folder in conf data models runner scripts tasks; do ln -sfn ../../../$$folder $@/$$folder; done

demo: $(STAMP) ## Four counterfactuals of the planted world; prints the path of their page
	@echo "Running: $(PY) run.py"
	@$(PY) run.py

test: $(STAMP) ## Run the tests but the slow ones
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m "not slow and not slurm"

test-all: $(STAMP) ## Run all tests but those of SLURM
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m "not slurm"

test-slurm: $(STAMP) ## Start a SLURM of one node, as root with Debian's slurm-wlm and munge, and give jobs to it
	scripts/slurm_local.sh stop
	scripts/slurm_local.sh start
	SLURM_CONF=$${SLURM_LOCAL:-/tmp/slurm_local}/slurm.conf $(PY) -m pytest -m slurm; \
	  code=$$?; scripts/slurm_local.sh stop; exit $$code

test-groundingdino: $(GROUNDINGDINO)/.installed ## Test segmenter=grounded_sam_original in an environment of its own (5.5 GB, minutes)
	$(GROUNDINGDINO)/bin/python -m pytest --noconftest tests/models/segmenter/test_grounded_sam_original.py

# groundingdino-py's build looks at torch, so torch has to be there before it.
$(GROUNDINGDINO)/.installed: requirements.groundingdino.lock
	@echo "Creating $(GROUNDINGDINO)/ with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(GROUNDINGDINO)
	@grep -v '^groundingdino-py==' $< > $(GROUNDINGDINO)/first.txt
	@$(GROUNDINGDINO)/bin/python -m pip install --quiet --disable-pip-version-check -r $(GROUNDINGDINO)/first.txt
	@$(GROUNDINGDINO)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -r $<
	@touch $@

check: $(STAMP) $(LINKS) ## Lint, formatting, types and the links of the documentation
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@$(MAKE) --no-print-directory docs

docs: $(STAMP) ## Build the documentation into build/site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

format: $(STAMP) ## Format the code and mend what the linter can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

evaluate: $(STAMP) ## Measure the metrics of the results tables: METRICS=planted.vae,cifar10.uvce N=64 SEED=1
	$(PY) scripts/evaluate/evaluate.py $(if $(METRICS),metrics=$(METRICS)) $(if $(N),n=$(N)) $(if $(SEED),seed=$(SEED))

bench: $(STAMP) ## Time the runner beside a plain loop, an hour: ONLY=uvce,memory REPEATS=1
	$(PY) scripts/bench/bench.py $(if $(ONLY),only=$(ONLY)) $(if $(REPEATS),repeats=$(REPEATS))

figures: $(STAMP) ## Run the planted miniatures and compose outputs/figures/: ONLY=fig06
	$(PY) scripts/make_figures.py $(if $(ONLY),only=$(ONLY))

images: $(STAMP) ## Compute the result images of the documentation, docs/images/
	$(PY) scripts/make_figures.py only=uvce $(IMAGES) max_blocks=3 limit=4 batch=4
	$(PY) scripts/make_figures.py only=neuron_cf $(IMAGES) max_blocks=1 limit=4 batch=4
	$(PY) scripts/make_figures.py only=npca_cf,class_explanation,disagreement,neuron_vis $(IMAGES) limit=2 batch=2
	$(PY) scripts/make_figures.py only=audit $(IMAGES) task.features_per_class=1 limit=2 batch=2
	$(PY) scripts/make_figures.py only=concept_effect $(IMAGES) max_blocks=1
	$(PY) scripts/make_figures.py only=fig12 $(IMAGES) limit=1
	$(PY) scripts/make_figures.py only=fig13 $(IMAGES) max_blocks=1 limit=2 batch=2

clean: ## Remove caches and build products; environments and outputs/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -path './.venv*' -prune -o -path ./outputs -prune -o -type d -name __pycache__ -exec rm -rf {} +
