"""Runs the recipe in this folder, and asks the champion a question."""

from alignment_dags import api

project = api.open("my_model.yaml")
project.run()

print(project.comparisons()[["suite", "metric", "n", "baseline", "candidate", "difference", "verdict"]].to_string())
verdict = project.verdict()
print("gate:", verdict.verdict, *verdict.reasons, sep="\n  ")
print("report:", verdict.report)

champion = project.champion()
model, tokenizer = champion.load()
question = [{"role": "user", "content": "Write a line about the red fox in the barn."}]
ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**ids.to(model.device), max_new_tokens=24, do_sample=False)
print(
    f"\nversion {champion.version}:", tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
)
