"""Networks trained on pixels, end to end, under the same contract as heads on stored vectors."""
