"""Listeners for OpenTelemetry (`retrypolicy.telemetry.opentelemetry`) and Prometheus (`...telemetry.prometheus`).

Log lines need none: the logger `retrypolicy` gets them from every engine.
"""
