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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"max_norm": 0.5}, {"fused": False}], ids=str)
def test_lightning_scales_clips_and_skips(options, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason=REASON)
    from lightning.pytorch.plugins.precision import MixedPrecision

    class Module(lightning.LightningModule):
        def __init__(self, make):
            super().__init__()
            self.net, self.make = net(), make

        def training_step(self, batch, number):
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.net(x), y)
            return loss * torch.inf if number == 3 else loss

        def configure_optimizers(self):
            return self.make(self.parameters())

    def train(make, clip):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            gradient_clip_val=clip,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module = Module(make)
        trainer.fit(module, batches())
        assert scaler.get_scale() == 4.0
        return module

    own = train(
        lambda params: ours.AdamW(params, lr=1e-2, **options),
        None if "max_norm" in options else 0.5,
    )
    theirs = train(lambda params: torch.optim.AdamW(params, lr=1e-2), 0.5)
    assert_close(own.parameters(), theirs.parameters(), ulps=64)


@pytest.mark.filterwarnings("ignore")
def test_accelerate_scales_clips_and_skips():
    accelerate = pytest.importorskip("accelerate", reason=REASON)

    def train(library):
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        model = net()
        optimizer = library.AdamW(model.parameters(), lr=1e-2, fused=True)
        model, optimizer, data = accelerator.prepare(model, optimizer, batches())
        for number, (x, y) in enumerate(data):
            loss = torch.nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss * torch.inf if number == 3 else loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        assert accelerator.scaler.get_scale() == 4.0
        return accelerator.unwrap_model(model)

    both(train)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_clips_saves_and_resumes(tmp_path):
    transformers = pytest.importorskip("transformers", reason=REASON)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.mse_loss(self.net(x), labels)}

    data = [{"x": x, "labels": y} for x, y in batches().dataset]

    def train(library):
        path = tmp_path / library.__name__

        def trainer():
            arguments = transformers.TrainingArguments(
                output_dir=path,
                max_steps=6,
                save_steps=3,
                gradient_accumulation_steps=2,
                max_grad_norm=0.5,
                warmup_steps=2,
                lr_scheduler_type="cosine",
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
            )
            return transformers.Trainer(
                model=Net(),
                args=arguments,
                train_dataset=data,
                optimizer_cls_and_kwargs=(library.AdamW, {"lr": 1e-2}),
            )

        whole, resumed = trainer(), trainer()
        whole.train()
        resumed.train(resume_from_checkpoint=str(path / "checkpoint-3"))
        assert_close(resumed.model.parameters(), whole.model.parameters(), ulps=0)
        return resumed.model

    both(train)
