PYTHON ?= python

.PHONY: lint format test bench

lint:  ## Style, types and imports, as run_tests.sh and pre-commit check them.
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()"

format:  ## Apply the automatic fixes.
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:  ## The tests alone; ARGS="-k conv" narrows it.
	$(PYTHON) -m pytest $(ARGS)

bench:  ## Every benchmark, one after the other; each prints its table.
	@for script in benchmarks/*.py; do \
		echo "== $$script"; $(PYTHON) $$script || exit 1; \
	done
