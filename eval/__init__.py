"""What is measured: suites, scoring, judges, statistics, comparison, gate and report. No Dagster, no MLflow."""
