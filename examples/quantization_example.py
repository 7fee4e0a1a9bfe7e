"""The smallest example: wrap a network, train it quantized on the digits, export integers.

python examples/quantization_example.py
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from edgeailite import xnn

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, 2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
)

epochs = 10
model = xnn.quantize.QuantTrainModule(model, dummy_input=images[:1], total_epochs=epochs)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(epochs):
    model.train()
    for batch in torch.randperm(1437).split(64):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval()
correct = (model(images[1437:]).argmax(1) == labels[1437:]).float().mean()
print(f"quantized accuracy on 360 digits it has not seen: {100 * correct:.1f} %")
output = Path("data/checkpoints/example")
output.mkdir(parents=True, exist_ok=True)
model.export(images[:1], output / "digits.onnx")
print(f"integer model: {output / 'digits.onnx'}")
