"""Shows the thumbs of this folder: how many, how likely the reference finds them, and what training made of them."""

from alignment_dags import api

project = api.open("thumbs.yaml")
rows = project.rows().merge(project.logprobs(), on=["shard", "row_id"])
rows["per_token"] = rows["completion_logp"] / rows["completion_tokens"]
print(rows.groupby(["label", "split"])["per_token"].agg(["size", "mean"]))

print()
print(project.comparisons().to_string(index=False))
