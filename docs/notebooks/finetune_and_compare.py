# %% [markdown]
# # Fine-tune and compare
#
# A small ViT learns scikit-learn's digits densely; then each method trains it further with its pruning active, from the
# same weights, for the same number of steps. The comparison is the package's: paired, on the same images, with errors.
# `pip install '.[search]'`; about half a minute on two cores. 360 test images and one seed say little about the
# methods: this shows how to compare, not who wins.

# %%
import copy

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate

import entropatch
from entropatch.measure import count_flops
from entropatch.records.uncertainty import accuracy, ahead, paired_difference

torch.manual_seed(0)
torch.set_num_threads(1)  # so small a model is no faster on two
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
images, labels = interpolate(images, (24, 24)), torch.tensor(digits.target)
test = torch.arange(len(images)) % 5 == 0


# %%
def train(model, epochs, rate, seed=0, batch=32):
    """A one-cycle schedule of AdamW; the order of the images depends on the seed alone."""
    order, count = torch.Generator().manual_seed(seed), int((~test).sum())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * (count // batch))
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=order)[: count // batch * batch].split(batch):
            optimizer.zero_grad()
            cross_entropy(model(images[~test][rows]), labels[~test][rows]).backward()
            optimizer.step()
            steps.step()
    return model.eval()


@torch.inference_mode()
def correct(model):
    """Which test images come out right."""
    return (model(images[test]).argmax(1) == labels[test]).numpy()


shape = {"img_size": 24, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10}
shape["init_values"] = 0.1
dense = train(timm.create_model("vit_tiny_patch16_224", **shape), epochs=6, rate=2e-3)
start = accuracy(correct(dense))
cost = count_flops(dense, images[:1]).total / 1e6
print(f"dense: {start.value:.1f} ± {start.standard_error:.1f} %, {cost:.1f} MFLOPs")

# %% [markdown]
# At most the same patches for all: a keep rate of 0.5 at blocks 1, 2 and 3.

# %%
methods = ("random", "evit", "shannon", "renyi-inf@2")
before, after = {}, {}
for name in methods:
    model = entropatch.prune_(copy.deepcopy(dense), method=name, keep_rate=0.5, blocks=(1, 2, 3))
    before[name] = correct(model)
    after[name] = correct(train(model, epochs=1, rate=5e-4))

# %% [markdown]
# Differences to random pruning are of the pairs on the same images; "ahead" is more than two of their standard errors.

# %%
for name in methods:
    free, tuned = accuracy(before[name]), accuracy(after[name])
    line = f"{name:12} {free.value:5.1f} ± {free.standard_error:.1f}"
    line += f"  ->  {tuned.value:5.1f} ± {tuned.standard_error:.1f}"
    if name != "random":
        off = paired_difference(after[name], after["random"])
        line += f"   less random {off.value:+.1f} ± {off.standard_error:.1f}"
        line += ", ahead" * ahead(after[name], after["random"])
    print(line)
assert all(accuracy(after[name]).value > 50 for name in methods)

# %% [markdown]
# The weights are a stock state_dict; the setting is a file of its own.

# %%
torch.save(entropatch.unprune_(model).state_dict(), "digits.pt")
entropatch.PruneConfig(method=methods[-1], keep_rate=0.5, blocks=(1, 2, 3)).save("digits.json")
again = timm.create_model("vit_tiny_patch16_224", **shape).eval()
again.load_state_dict(torch.load("digits.pt"))
entropatch.prune_(again, entropatch.PruneConfig.load("digits.json"))
assert (correct(again) == after[methods[-1]]).all()
