"""Imported last by the server that step processes are forked from: what it has imported is no garbage.

A collection in a step would walk through the half million objects of torch, MLflow and the others, 0.3 s each time, and
training asks for several. It would also copy the memory that all steps share with the server: 137 MiB a step.
"""

import gc

gc.collect()
gc.freeze()
