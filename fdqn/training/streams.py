"""Numbers of the random streams of a seed, for `random.fold_in`: one for each purpose."""

# HOST_EVALUATION seeds the host environments of an evaluation, HOST_RESET those of training. POPULATION is for steps of
# population based training.
NETWORK, RESET, CYCLES, EVALUATION, HOST_EVALUATION, HOST_RESET, POPULATION = range(7)
