"""Trainers of others, with a callback that records their steps; skipped where they are not installed.

`make test-transformers` runs these in an environment of their own, above that of the other tests.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed import FedSGD, LocalAdamW
from inversefed.errors import ConfigError
from inversefed.integrations.lightning import LightningCapture
from inversefed.integrations.periodic_capture import PeriodicCapture
from inversefed.integrations.transformers import TrainerCapture
from inversefed.updates.update import read_update
from inversefed.zoo import pictures

MEAN, STD = 0.5, 0.25

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    first = torch.stack([pictures.photo(name, (3, 16, 16)) for name in pictures.photo_names()])
    return torch.cat([first, first.flip(-1)]), torch.arange(16) % 5


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong in ({"steps": 0}, {"every": -1}, {"every": 2, "steps": 3}):
        with pytest.raises(ConfigError, match="1 step or more"):
            PeriodicCapture(tmp_path, **wrong)
    for name, build in (("transformers", TrainerCapture), ("lightning", LightningCapture)):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(ConfigError, match="pip install"):
                build(tmp_path)


@installed("transformers")
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_a_vision_transformer_in_a_trainer(mixed: bool, tmp_path: Path, photos: tuple[Tensor, Tensor]) -> None:
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1e-3, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, bf16=mixed,
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    data = [{"pixel_values": (image - MEAN) / STD, "labels": label} for image, label in zip(*photos, strict=True)]
    callback, once = TrainerCapture(tmp_path / "two", steps=2), TrainerCapture(tmp_path / "each", every=1)
    Trainer(model, arguments, train_dataset=data, callbacks=[callback, once]).train()

    update = callback.latest
    told = update.metadata
    assert (told.num_examples, told.batch_size, told.micro_batch_size, told.local_steps) == (8, 4, 2, 2)
    assert told.autocast == ("bfloat16" if mixed else None)
    assert update.client.optimizer == LocalAdamW(weight_decay=0.0)
    found = update.check(photos[0][:8], photos[1][:8], mean=MEAN, std=STD)
    assert float(found.evidence["cosine"]) > 0.999 and float(found.evidence["scale"]) == pytest.approx(1, abs=0.01)
    assert [folder.name for folder in callback.folders] == ["step-000000"]
    assert read_update(tmp_path / "two" / "step-000000" / "update.safetensors").metadata == told

    assert [folder.name for folder in once.folders] == ["step-000000", "step-000001", "step-000002"]
    assert once.latest.client == FedSGD() and once.latest.metadata.num_examples == 4, "AdamW has moments by then"
    found = once.latest.check(photos[0][8:12], photos[1][8:12], mean=MEAN, std=STD)
    assert float(found.evidence["cosine"]) > 0.999 and float(found.evidence["scale"]) == pytest.approx(1, abs=0.01)


@installed("lightning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_module_of_lightning(precision: str, tmp_path: Path, photos: tuple[Tensor, Tensor]) -> None:
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            layers = (nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Flatten(), nn.Linear(384, 5))
            self.layers = nn.Sequential(*layers)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layers(inputs)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.layers(batch[0]), batch[1])  # and not self(..): a part is called

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    torch.manual_seed(0)
    module = Classifier()
    loader = DataLoader(TensorDataset((photos[0] - MEAN) / STD, photos[1]), batch_size=4)
    callback = LightningCapture(tmp_path / "two", steps=2)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", precision=precision, accumulate_grad_batches=2, callbacks=[callback],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)

    update = callback.latest
    told = update.metadata
    assert (told.num_examples, told.batch_size, told.micro_batch_size, told.local_steps) == (16, 8, 4, 2)
    assert told.bn_mode == "train" and told.autocast == ("bfloat16" if precision == "bf16-mixed" else None)
    assert "layers.0.weight" in update.tensors
    found = update.check(*photos, mean=MEAN, std=STD)
    assert float(found.evidence["cosine"]) > 0.999 and float(found.evidence["scale"]) == pytest.approx(1, abs=0.01)
    assert [folder.name for folder in callback.folders] == ["step-000000"]
