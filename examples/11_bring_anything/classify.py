"""A text classifier with Hugging Face's Trainer, as its `run_classification` does it. Two lines are llmsched's.

python classify.py MODEL DATA.csv        (columns "sentence" and "label"; one process, or torchrun)
"""

import csv
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from llmsched.runtime import hf

name, data = sys.argv[1:3]
with Path(data).open(newline="") as file:
    rows = list(csv.DictReader(file))
labels = sorted({row["label"] for row in rows})
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(
    name,
    num_labels=len(labels),
    id2label=dict(enumerate(labels)),
    label2id={label: i for i, label in enumerate(labels)},
)
encoded = [
    {**tokenizer(row["sentence"], max_length=64, truncation=True), "label": labels.index(row["label"])} for row in rows
]


def accuracy(judged):
    return {"accuracy": float((judged.predictions.argmax(-1) == judged.label_ids).mean())}


elastic = hf.Elastic()
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="classified",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_steps=24,
        logging_steps=1,
        learning_rate=5e-3,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=encoded[: -len(encoded) // 8],
    eval_dataset=encoded[-len(encoded) // 8 :],
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=accuracy,
    callbacks=[elastic],
)
trainer.train(resume_from_checkpoint=elastic.checkpoint)
print("accuracy", trainer.evaluate()["eval_accuracy"])
