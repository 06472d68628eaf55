PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install audit test test-mlflow test-transformers test-flower test-nvflare proofs check bench fuzz chaos paper notebooks docs docs-html docs-doctest release clean

install: $(VENV)/installed

# The package and its page in the browser are what the README uses; the tools of tests and documents take half as long
# again.
$(VENV)/package: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	@echo "PyTorch and what else an audit needs is fetched into $(VENV); this takes some minutes."
	$(BIN)/pip install --editable ".[serve]"
	touch $@

$(VENV)/installed: $(VENV)/package
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

audit: $(VENV)/package
	$(BIN)/inversefed audit --output runs/demo --overwrite
	@echo "Open runs/demo/report.html. For the inversefed command in this shell: source $(BIN)/activate"

# Two processes on two cores: a second thread of one, or of what it starts, only takes the other's core. What is compiled
# is kept, rewritten assertions and checked functions too, which otherwise every process compiles again.
test proofs notebooks docs-html docs-doctest test-mlflow test-transformers test-flower test-nvflare: export OMP_NUM_THREADS = 1
test proofs: export PYTHONDONTWRITEBYTECODE =

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 400 --durations-min 1.0

# MLflow stands beside the environment, not in it: its own dependencies pin what other tools here pin otherwise.
$(VENV)/mlflow/installed: $(VENV)/installed
	$(BIN)/pip install --quiet --target $(VENV)/mlflow "mlflow-skinny>=3"
	touch $@

test-mlflow: $(VENV)/mlflow/installed
	PYTHONPATH=$(VENV)/mlflow $(BIN)/python -c "import mlflow"
	PYTHONPATH=$(VENV)/mlflow $(BIN)/python -m pytest tests/experiments/test_tracking.py -k mlflow

# Trainers of others stand in an environment above this one: they need its torch, and pin a hundred packages of their own.
SITE = import sysconfig; print(sysconfig.get_path("purelib"))
$(VENV)/transformers/installed: $(VENV)/installed
	$(BIN)/python -m venv $(VENV)/transformers
	site=$$($(BIN)/python -c '$(SITE)') && echo "import site; site.addsitedir('$$site')" > \
		"$$($(VENV)/transformers/bin/python -c '$(SITE)')/beneath.pth"
	$(VENV)/transformers/bin/pip install --quiet "transformers>=5" "accelerate>=1.10" "lightning>=2.5"
	touch $@

test-transformers: $(VENV)/transformers/installed
	$(VENV)/transformers/bin/python -c "import lightning, transformers"
	$(VENV)/transformers/bin/python -m pytest tests/integrations/test_trainers.py

# Flower stands beside it for the same reason: its simulation pins a Ray of its own, which has to come first.
$(VENV)/flower/installed: $(VENV)/installed
	$(BIN)/pip install --quiet --target $(VENV)/flower "flwr[simulation]>=1.42"
	touch $@

test-flower: $(VENV)/flower/installed
	PYTHONPATH=$(VENV)/flower $(BIN)/python -c "import flwr"
	PYTHONPATH=$(abspath $(VENV)/flower) PATH=$(abspath $(VENV)/flower/bin):$$PATH $(BIN)/python -m pytest tests/integrations/test_flower.py tests/integrations/test_flower_runs.py -m "slow or not slow"

# So does NVFlare, which pins a web server and more.
$(VENV)/nvflare/installed: $(VENV)/installed
	$(BIN)/pip install --quiet --target $(VENV)/nvflare "nvflare>=2.8"
	touch $@

test-nvflare: $(VENV)/nvflare/installed
	PYTHONPATH=$(VENV)/nvflare $(BIN)/python -c "import nvflare"
	PYTHONPATH=$(CURDIR)/$(VENV)/nvflare $(BIN)/python -m pytest tests/integrations/test_nvflare.py -m "slow or not slow"

proofs: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 30 -m slow

check: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.inversion --cases lenet,allconv,mcmahan --limit 3 --json runs/bench/inversion.json

fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz_updates --seconds 240

chaos: install
	$(BIN)/python -m tests.experiments.chaos --kills 200 --jobs 60

DATA ?= ~/data
paper: install
	$(BIN)/python -m benchmarks.paper --data-path $(DATA)

# Every cell again, with its full budget; their outputs and seconds are what the pages show.
notebooks: install
	$(BIN)/jupyter-execute --inplace --NotebookClient.record_timing=False notebooks/*.ipynb

# Afresh: a build that goes on from an earlier one loses the index entries of unchanged pages from the search.
docs: docs-html docs-doctest

docs-html: install
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --builder html --doctree-dir docs/_build/doctrees-html docs docs/_build/html

docs-doctest: install
	$(BIN)/sphinx-build --fail-on-warning --builder doctest --doctree-dir docs/_build/doctrees-doctest docs docs/_build/doctest

# The archives in dist, tried from a new environment, then what is installed here against the database of known weaknesses.
# It fails where that database does not know a package, as behind a mirror that has none, rather than to call it sound.
$(VENV)/release/installed: $(VENV)/installed
	$(BIN)/pip install --quiet --target $(VENV)/release "pip-audit>=2.7"
	touch $@

release: $(VENV)/release/installed
	rm -rf dist && $(BIN)/python -m hatchling build --directory dist
	$(BIN)/python -m pytest tests/test_distribution.py -m "slow or not slow"
	$(BIN)/pip freeze --exclude-editable > $(VENV)/release/freeze.txt
	PYTHONPATH=$(VENV)/release $(BIN)/python -m pip_audit --strict --disable-pip --no-deps --requirement $(VENV)/release/freeze.txt

clean:
	rm -rf $(VENV) docs/_build dist
