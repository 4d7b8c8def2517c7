# What all experiments share: settings, data, and trainings that resume where they stopped. A Makefile that includes
# this file sets SEEDS and the recipe of each scale, and lists the recipe's variables in RECIPE. Encoders are
# $(OUT)/encoders/KIND/METHOD/SEED.safetensors. .PRECIOUS keeps files that are not prerequisites of RESULTS.md itself.
# An encoder may be deleted once its measurements are there; make does not train it again.

SCALE ?= small
OUT ?= build/$(SCALE)
PYTHON ?= python3
# A micro run shows that the chain works; its numbers do not belong beside those of the other scales.
RESULTS ?= $(if $(filter micro,$(SCALE)),$(OUT),.)
all-seeds := 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19
seeds = $(wordlist 1,$(SEEDS),$(all-seeds))

.PHONY: all clean always
.DELETE_ON_ERROR:
.SECONDEXPANSION:
all: $(RESULTS)/RESULTS.md
clean:
	rm -rf $(OUT)

# One folder holds one recipe, because the numbers of two recipes would mix silently. The lists in GROWS may grow
# between runs.
variables = $(RECIPE) $(sort $(filter SPEC_% PRETRAIN_% PRESET_%,$(.VARIABLES)))
export SETTINGS = make SCALE=$(SCALE)$(if $(DATA), DATA=$(notdir $(DATA:/=))) \
    $(foreach name,$(variables),$(if $($(name)),$(name)='$($(name))'))
GROWS ?= METHODS SEEDS
export COMMAND = $(SETTINGS) $(foreach name,$(GROWS),$(name)='$($(name))')
$(OUT)/settings: always
	@mkdir -p $(@D)
	@test -e $@ || printf '%s\n' "$$SETTINGS" > $@
	@printf '%s\n' "$$SETTINGS" | diff $@ - >&2 || { \
	    echo "$(OUT) holds a run with other settings (above, <); take another OUT, or make clean" >&2; exit 1; }

# TRAIN and TEST are the arguments of `sslbd data`. DATA is a folder or an archive of SPLIT/CLASS/IMAGE.
data = $(or $(DATA),$(error SCALE=$(SCALE) needs DATA=PATH, a folder or archive of SPLIT/CLASS/IMAGE))
$(OUT)/train.h5: | $(OUT)/settings
	sslbd data $(TRAIN) -o $@
$(OUT)/test.h5: | $(OUT)/settings
	sslbd data $(TEST) -o $@

# $(call field,STEM,N): the Nth part of a path. $(call pretrain,METHOD,SEED): the recipe of an encoder.
field = $(word $(2),$(subst /, ,$(1)))
spec = $(or $(SPEC_$(1)),$(1))
# $(call way,ATTACK): the options of `sslbd badencoder`. SPEC_x takes precedence over PRESET_x.
way = $(if $(SPEC_$(1)),--method $(SPEC_$(1)),$(if $(PRESET_$(1)),--preset $(PRESET_$(1)),--method $(1)))
define pretrain
@mkdir -p $(@D)
sslbd pretrain $< --method $(call spec,$(1)) $(PRETRAIN) $(PRETRAIN_$(1)) --seed $(2) \
    --checkpoint $@.checkpoint --resume -o $@
@rm -f $@.checkpoint
endef
.PRECIOUS: $(OUT)/encoders/clean/%.safetensors
$(OUT)/encoders/clean/%.safetensors: $(OUT)/train.h5
	$(call pretrain,$(*D),$(*F))
