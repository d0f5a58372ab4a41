"""The embedded default: a micro Llama and the text that trains, tunes and measures it, all made from a seed.

It shows the pipeline, not quality: nothing here says anything about a model that people would use.
"""
