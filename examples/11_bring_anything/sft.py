"""A supervised fine-tune with TRL. Two lines are llmsched's: the callback, and where to go on.

python sft.py MODEL DATA.jsonl        (rows with "messages"; one process, or torchrun)
"""

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from llmsched.runtime import hf

model, data = sys.argv[1:3]
elastic = hf.Elastic()
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir="sft",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        max_steps=30,
        logging_steps=1,
        learning_rate=1e-3,
        max_length=128,
        report_to=[],
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=load_dataset("json", data_files=data, split="train"),
    callbacks=[elastic],
)
trainer.train(resume_from_checkpoint=elastic.checkpoint)
