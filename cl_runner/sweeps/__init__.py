"""Many runs: a multirun here, or a sweep whose jobs go to SLURM or wait for this machine's devices."""
