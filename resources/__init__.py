"""What the nodes use: the artifact store, MLflow tracking, compute pools and their launchers."""
