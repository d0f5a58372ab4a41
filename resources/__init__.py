"""What the nodes hold: the artifact store, MLflow tracking, compute pools and their launchers."""
