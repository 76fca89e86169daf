"""The demo: a real pretrained ViT-S under every method; see `entropatch.demo.showing`."""
