"""Our own line of schema changes, in `calotype_version`; order is the revision graph and nothing else."""
