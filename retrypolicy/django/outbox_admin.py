"""The admin page of the outbox: which messages wait, what happened to them, and *send again*. Never what they say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from retrypolicy.django.again import send_again
from retrypolicy.django.delivery import OPEN
from retrypolicy.django.models import OutboxMessage
from retrypolicy.errors import RetryPolicyError


class OutboxAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic for the stubs only
    """Read-only, but for *send again*, and for deleting what is to be forgotten."""

    list_display = ("__str__", "state", "due_at", "trouble")
    list_filter = ("state",)
    search_fields = ("label", "key")
    ordering = ("-state", "due")
    fields = ("label", "key", "state", "trouble", "due_at", "put_at", "policy", "mailer", "turn", "digest")
    readonly_fields = fields
    actions = ("send_again",)

    @admin.display(description="due", ordering="due")
    def due_at(self, row: OutboxMessage) -> datetime | None:
        """When it is looked at next, if ever."""
        if row.state not in OPEN:
            return None
        return datetime.fromtimestamp(row.due, UTC)

    @admin.display(description="since", ordering="since")
    def put_at(self, row: OutboxMessage) -> datetime:
        """When its lifetime began."""
        return datetime.fromtimestamp(row.since, UTC)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self.has_send_again_permission(request)

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        """Who may change a message's row may have it sent."""
        user: Any = request.user
        return bool(user.has_perm("retrypolicy.change_outboxmessage"))

    @admin.action(description="Send again", permissions=["send_again"])
    def send_again(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Release the chosen ones and send them, after it was confirmed."""
        rows = [row for row in queryset if row.state != OutboxMessage.State.WAITING]
        if len(rows) < len(queryset):
            messages.warning(request, f"{len(queryset) - len(rows)} of them wait already; nothing was changed.")
        if not rows:
            return None
        if "confirmed" not in request.POST:
            context = {**self.admin_site.each_context(request), "title": "Send again", "rows": rows}
            return TemplateResponse(request, "admin/retrypolicy/outboxmessage/confirm.html", context)
        sent = 0
        for row in rows:
            try:
                why = send_again(row, by=f"{request.user.get_username()} in the admin")
            except RetryPolicyError as error:
                why = str(error)
            if why:
                messages.warning(request, f"{row}: not changed, {why}.")
                continue
            sent += 1
            self.log_change(request, row, f"sent again: was {row.get_state_display()}")
        if sent:
            messages.success(request, f"{sent} message(s) sent again.")
        return None
