# What the executable papers share beyond encoders.mk: RESULTS.md and the check.
# A paper's Makefile lists what it measures in the variable probes: $(OUT)/results/SECTION/METHOD/KIND/SEED.json. A
# section is a table of RESULTS.md; method and kind name its row.

shared := $(dir $(lastword $(MAKEFILE_LIST)))
WRITER ?= $(shared)results.py
include $(shared)encoders.mk

.PHONY: check
$(RESULTS)/RESULTS.md: $$(probes) $(wildcard expected.json) $(WRITER) $(shared)check.py
	$(PYTHON) $(WRITER) "$(TITLE)" $(SCALE) $(OUT) $(RESULTS) $(filter $(OUT)/results/%,$^)

# For each number: reproduced, outside tolerance, or not run. It reads the measurements and runs nothing.
check:
	@$(if $(wildcard expected.json),$(PYTHON) $(shared)check.py expected.json $(RESULTS)/measured.json, \
	    cat $(RESULTS)/RESULTS.md)
