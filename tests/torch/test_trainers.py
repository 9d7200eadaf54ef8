"""Trainers built around ``torch.optim``: a few steps of each, beside PyTorch's optimizer."""

from __future__ import annotations

import pytest

from tests.torch.support import assert_close, torch

ours = pytest.importorskip("lucid_gpu.torch")

REASON = "pip install -e '.[integrations]'"


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batches(count=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * 4, 4, generator=generator)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4
    )


def both(train):
    """Train by each library and compare the parameters."""
    own, theirs = (train(library) for library in (ours, torch.optim))
    assert_close(own.parameters(), theirs.parameters(), ulps=64)
    return own


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_accumulates_clips_and_resumes(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason=REASON)

    class Module(lightning.LightningModule):
        def __init__(self, library):
            super().__init__()
            self.net, self.library = net(), library

        def training_step(self, batch, _):
            x, y = batch
            return torch.nn.functional.mse_loss(self.net(x), y)

        def configure_optimizers(self):
            optimizer = self.library.AdamW(self.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    def trainer(epochs):
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )

    def train(library):
        path = tmp_path / f"{library.__name__}.ckpt"
        first = trainer(1)
        first.fit(Module(library), batches())
        first.save_checkpoint(path)
        module = Module(library)
        trainer(2).fit(module, batches(), ckpt_path=path, weights_only=False)
        return module

    both(train)


@pytest.mark.filterwarnings("ignore")
def test_accelerate_prepares_steps_and_restores(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason=REASON)

    def train(library):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = net()
        optimizer = library.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        model, optimizer, data, schedule = accelerator.prepare(
            model, optimizer, batches(), schedule
        )

        def epoch():
            for x, y in data:
                with accelerator.accumulate(model):
                    loss = torch.nn.functional.mse_loss(model(x), y)
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()

        epoch()
        accelerator.save_state(str(tmp_path / library.__name__))
        epoch()
        accelerator.load_state(str(tmp_path / library.__name__))
        epoch()
        return accelerator.unwrap_model(model)

    both(train)
