"""Shows what the run in this folder found: the comparison, and the reference's view of the held-out pairs."""

from alignment_dags import api

project = api.open("my_pairs.yaml")
print(project.comparisons().to_string(index=False))

rows = project.rows()
print("\nrows:", rows["split"].value_counts().to_dict())

held_out = rows[rows["split"] == "held_out"].merge(project.logprobs(), on=["shard", "row_id"])
held_out["margin"] = held_out["chosen_logp"] - held_out["rejected_logp"]
print(
    "the reference prefers the chosen reply in", (held_out["margin"] > 0).sum(), "of", len(held_out), "held-out pairs"
)
print("least so for:", held_out.loc[held_out["margin"].idxmin(), "prompt"][-1]["content"])
print("\nthe policy is a folder that transformers loads:", project.policy().path)
