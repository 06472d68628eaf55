"""Train a vision transformer by `transformers.Trainer`, record its first step, and audit it."""

import argparse
import tempfile

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import inversefed
from inversefed.integrations.transformers import TrainerCapture
from inversefed.zoo import pictures

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output", default="captured", help="folder for the files of the update")
options = parser.parse_args()

torch.manual_seed(0)
image, label = pictures.photo("chelsea", (3, 32, 32)), torch.tensor(3)
config = ViTConfig(
    hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, image_size=32, patch_size=4,
    num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
model = ViTForImageClassification(config)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=1, max_grad_norm=0, use_cpu=True,
    report_to=[], save_strategy="no", disable_tqdm=True,
)  # fmt: skip
capture = TrainerCapture(options.output, sends="gradient")
data = [{"pixel_values": (image - 0.5) / 0.25, "labels": label}]
Trainer(model, arguments, train_dataset=data, callbacks=[capture]).train()

update = capture.latest
assert update is not None
truth = inversefed.Batch(image[None], label[None])
report = inversefed.audit_observation(
    update.observation(mean=0.5, std=0.25), truth=truth, findings=update.findings, time_budget=60
)
print(f"{capture.folders[0]} holds the update\n{report.summary()}")
