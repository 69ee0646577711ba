"""A small encoder of random weights as LiteRT takes it, beside its PyTorch form."""

from pathlib import Path

from tests.support.small_graph import VOCABULARY

MAX_TOKENS = 24
WIDTH, LABELS = 16, 3


def encoder(seed=5):
    """Embedding, attention, feed-forward and mean pooling: (module, head); weights depend on `seed`."""
    import torch

    torch.manual_seed(seed)

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(VOCABULARY, WIDTH)
            self.query, self.value, self.up = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.head = torch.nn.Linear(WIDTH, LABELS)

        def forward(self, input_ids, attention_mask):
            mask = attention_mask.to(torch.float32)
            x = self.table(input_ids)
            scores = self.query(x) @ x.transpose(1, 2) + (1.0 - mask[:, None, :]) * -1.0e4
            x = x + scores.softmax(-1) @ self.value(x)
            x = x + torch.nn.functional.gelu(self.up(x))
            features = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return features, self.head(features)

    return Small().eval()


def write(folder: Path) -> Path:
    """fp32.tflite and int8.tflite in `folder`."""
    from edge_forge.export import litert

    litert.convert(encoder(), MAX_TOKENS, folder / "fp32.tflite")
    litert.quantize(folder / "fp32.tflite", folder / "int8.tflite")
    return folder
