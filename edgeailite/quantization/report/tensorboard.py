"""Report as TensorBoard events."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from edgeailite.quantization.report.entries import Histogram, Report


def add_to_tensorboard(report: Report, writer: SummaryWriter, global_step: int = 0) -> None:
    """Write a report as events: SQNR as scalars, histograms, and the text.

    Args:
        report: From :func:`build_report`; without data it has no histograms of activations.
        writer: Writer of the events; it stays open.
        global_step: Step of all events, the epoch for example.
    """
    writer.add_text("quantization/report", f"```\n{report}\n```", global_step)
    for layer in report.layers:
        writer.add_scalar(f"sqnr_weight/{layer.name}", layer.weight_sqnr, global_step)
        _add_histogram(writer, f"weight/{layer.name}", layer.weight_histogram, global_step)
        if layer.output_sqnr is not None:
            writer.add_scalar(f"sqnr_output/{layer.name}", layer.output_sqnr, global_step)
    for activation in report.activations:
        if activation.histogram is None:
            continue
        assert activation.sqnr is not None
        assert activation.clipped is not None
        _add_histogram(writer, f"activation/{activation.name}", activation.histogram, global_step)
        writer.add_scalar(f"sqnr_activation/{activation.name}", activation.sqnr, global_step)
        writer.add_scalar(f"clipped/{activation.name}", activation.clipped, global_step)


def _add_histogram(writer: SummaryWriter, tag: str, histogram: Histogram, global_step: int) -> None:
    low, high, counts = histogram
    width = (high - low) / len(counts)
    centers = [low + (i + 0.5) * width for i in range(len(counts))]
    writer.add_histogram_raw(
        tag,
        min=low,
        max=high,
        num=sum(counts),
        sum=sum(n * x for n, x in zip(counts, centers, strict=True)),
        sum_squares=sum(n * x * x for n, x in zip(counts, centers, strict=True)),
        bucket_limits=[low + (i + 1) * width for i in range(len(counts))],
        bucket_counts=counts,
        global_step=global_step,
    )
