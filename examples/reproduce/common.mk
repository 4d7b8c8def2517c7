# What the executable papers share beyond encoders.mk: RESULTS.md and the check.
# A paper's Makefile lists what it measures in probes: $(OUT)/results/SECTION/METHOD/KIND/SEED.json, where a section is a
# table of RESULTS.md, a method and kind its row.

shared := $(dir $(lastword $(MAKEFILE_LIST)))
WRITER ?= $(shared)results.py
include $(shared)encoders.mk

.PHONY: check
$(RESULTS)/RESULTS.md: $$(probes) $(wildcard expected.json) $(WRITER) $(shared)check.py
	$(PYTHON) $(WRITER) "$(TITLE)" $(SCALE) $(OUT) $(RESULTS) $(filter $(OUT)/results/%,$^)

# Per number: reproduced, outside tolerance, or not run. Reads what was measured, and runs nothing.
check:
	@$(if $(wildcard expected.json),$(PYTHON) $(shared)check.py expected.json $(RESULTS)/measured.json, \
	    cat $(RESULTS)/RESULTS.md)
