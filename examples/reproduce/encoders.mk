# What all experiments share: settings, data, encoders that go on where they stopped.
# A Makefile that includes this sets SEEDS and its recipe per scale, and lists its recipe's variables in RECIPE. Encoders
# are $(OUT)/encoders/KIND/METHOD/SEED.safetensors. What is no prerequisite of RESULTS.md itself is kept by .PRECIOUS;
# an encoder is not missed once its measurements are there.

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

# One folder holds one recipe, for numbers of two would mix silently. What GROWS names may grow from run to run.
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

# TRAIN and TEST are what `sslbd data` gets. DATA is a folder or an archive of SPLIT/CLASS/IMAGE.
data = $(or $(DATA),$(error SCALE=$(SCALE) needs DATA=PATH, a folder or archive of SPLIT/CLASS/IMAGE))
$(OUT)/train.h5: | $(OUT)/settings
	sslbd data $(TRAIN) -o $@
$(OUT)/test.h5: | $(OUT)/settings
	sslbd data $(TEST) -o $@

# $(call field,STEM,N): the Nth part of a path. $(call pretrain,METHOD,SEED): the recipe of an encoder.
field = $(word $(2),$(subst /, ,$(1)))
spec = $(or $(SPEC_$(1)),$(1))
# $(call way,ATTACK): what `sslbd badencoder` does; SPEC_x goes before PRESET_x.
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
