"""The DAGs: definitions, jobs, planning, running, lineage, and the `align` command."""
