# %% [markdown]
# # Calibrate and export
#
# A small ViT learns scikit-learn's digits, is calibrated for half of its multiply-adds without labels, and becomes an
# ONNX file that runs without entropatch. `pip install '.[search,export]'`; about half a minute on two cores.

# %%
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate

import entropatch
from entropatch.measure import count_flops

torch.manual_seed(0)
torch.set_num_threads(1)  # so small a model is no faster on two
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
images, labels = interpolate(images, (24, 24)), torch.tensor(digits.target)
test = torch.arange(len(images)) % 5 == 0

# %%
shape = {"img_size": 24, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10}
shape["init_values"] = 0.1
model = timm.create_model("vit_tiny_patch16_224", **shape)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
epochs, batch = 6, 32
steps = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * (int((~test).sum()) // batch))
for _ in range(epochs):
    for rows in torch.randperm(int((~test).sum()))[: steps.total_steps // epochs * batch].split(batch):
        optimizer.zero_grad()
        cross_entropy(model(images[~test][rows]), labels[~test][rows]).backward()
        optimizer.step()
        steps.step()
model.eval()


# %% [markdown]
# Accuracy carries its standard error, √(p (1 − p) / N).


# %%
@torch.inference_mode()
def top1(model):
    right = (model(images[test]).argmax(1) == labels[test]).float()
    return 100 * right.mean().item(), 100 * (right.var(correction=0) / len(right)).sqrt().item()


dense = count_flops(model, images[:1]).total / 1e9
print("dense: {:.1f} ± {:.1f} %".format(*top1(model)), f"{dense:.4f} GFLOPs")

# %% [markdown]
# 96 training images, without labels, say which blocks, criteria, rates and reductions change the output least.

# %%
config = entropatch.calibrate(model, images[~test][:96], gflops=dense / 2, effort=0, batch_size=64)
print(config.label, config.blocks, config.keep_rate)

for name, setting in (("calibrated", config), ("random", entropatch.PruneConfig(keep_rate=0.4, method="random"))):
    entropatch.prune_(model, setting)
    cost = count_flops(model, images[:1]).total / 1e9
    print(f"{name}: {cost:.4f} GFLOPs," + " {:.1f} ± {:.1f} %".format(*top1(model)))

# %% [markdown]
# The file is compared with PyTorch, in a process without entropatch, before it is put in place.

# %%
entropatch.prune_(model, config)
exported = entropatch.export(model, images[test][:8], "digits.onnx")

# %%
import onnxruntime

session = onnxruntime.InferenceSession("digits.onnx")
(logits,) = session.run(None, {session.get_inputs()[0].name: images[test].numpy()})
agree = (torch.tensor(logits).argmax(1) == model(images[test]).argmax(1)).float().mean()
print(f"the file and PyTorch name the same digit for {100 * agree:.1f} % of the test images")
assert agree > 0.99
