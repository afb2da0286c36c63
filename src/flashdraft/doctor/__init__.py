"""Why a drafter is slow: what can be wrong between a drafter and its target, tried out."""
