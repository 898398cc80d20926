"""GenDD in a plain PyTorch loop on the digits; the same loop trains the teacher and the smaller student."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import gendd

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
train_set, test_set = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
batches = DataLoader(train_set, batch_size=64, shuffle=True)
test_images, test_labels = test_set[:]


def fit(method: gendd.Method, epochs: int, lr: float = 1e-2) -> gendd.Student:
    optimiser = torch.optim.AdamW(method.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=epochs * len(batches))
    method.prepare(batches)
    for _ in range(epochs):
        for batch, labels in batches:
            out = method(batch, labels)
            optimiser.zero_grad()
            out.loss.backward()
            optimiser.step()
            schedule.step()
    return method.student().eval()


teacher = gendd.create_backbone("cifar/resnet8", num_classes=10, in_channels=1)
fit(gendd.Supervised(teacher), epochs=3)
distiller = gendd.GenDD(gendd.create_backbone("cifar/resnet8x0.5", 10, 1), teacher, head_width=128)
student = fit(distiller, epochs=6)
for name in ("mean", "linear"):
    student.readout = name
    with torch.no_grad():
        right = student(test_images).argmax(1) == test_labels
    print(f"{name}: {right.float().mean():.1%}")
