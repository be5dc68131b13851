"""The audit report as one HTML file: no script, nothing loaded from elsewhere, light, dark and on paper."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from synthedge_client import audit_pictures
from synthedge_client.audit import AuditReport
from synthedge_client.audit_sections import facts, sections


def to_html(report: AuditReport) -> str:
    """Write the page."""
    templates = Environment(
        loader=PackageLoader("synthedge_client"), autoescape=True, undefined=StrictUndefined
    )
    return templates.get_template("audit.html").render(
        report=report,
        facts=facts(report),
        sections=sections(report),
        gap_map=audit_pictures.gap_map(report),
        timeline=audit_pictures.timeline(report),
        flows=audit_pictures.flows(report),
        width=audit_pictures.WIDTH,
        label=audit_pictures.LABEL,
    )
