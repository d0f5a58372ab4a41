"""Imported last by the server that step processes are forked from: what it has imported is no garbage.

A collection in a step would walk through the half million objects of torch, MLflow and the others, 0.3 s each time, and
training asks for several. It would also copy the memory that all steps share with the server: 137 MiB a step.
"""

import gc
import signal

gc.collect()
gc.freeze()

# Ctrl-C on a terminal reaches every process. A step's process ignores it until Dagster handles it there; what came
# before that the run's process passes on. It was blocked while the server imported (alignment_dags/step_processes.py).
signal.signal(signal.SIGINT, signal.SIG_IGN)
if hasattr(signal, "pthread_sigmask"):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
