"""The admin page of the ledger: what is held, in flight and settled, and what to say about what is held.

It shows any ledger, wherever it is. Everything else about a record is the library's own business, and read-only.
"""

from __future__ import annotations

from typing import Any, Literal

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import path, reverse

from retrypolicy.django import settings
from retrypolicy.django.again import in_outbox, look_at, send_again
from retrypolicy.django.listing import AGES, VIEWS, Page, Row, page, row
from retrypolicy.django.models import OutboxMessage, Send
from retrypolicy.django.outbox_admin import OutboxAdmin
from retrypolicy.errors import RetryPolicyError
from retrypolicy.guard import upkeep
from retrypolicy.guard.ledger import Ledger

Verdict = Literal["applied", "not_applied"]

AGAIN = "again"
ACTIONS: dict[str, tuple[Verdict, str, str]] = {
    "arrived": ("applied", "It arrived", "It is recorded as done: a repeat sends nothing."),
    "release": ("not_applied", "It did not arrive: release", "The next call with this key sends it."),
    AGAIN: ("not_applied", "It did not arrive: send it again", "It is released, and sent from the outbox now."),
}
_BECAME = {"applied": "is done", "not_applied": "is failed"}


@admin.register(Send)
class SendAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic for the stubs only
    """Lists the ledger of the settings."""

    def get_urls(self) -> list[Any]:
        """The list, and a page for each record."""
        view = self.admin_site.admin_view
        return [
            path("", view(self.changelist_view), name="retrypolicy_send_changelist"),
            path("<str:object_id>/change/", view(self.change_view), name="retrypolicy_send_change"),
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The list; by POST what is done with the chosen records, after it was confirmed."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._act(request)
        shown = Page([], False, [])
        counts: dict[str, int] = {}
        try:
            ledger = settings.required_ledger()
            shown = page(ledger, request.GET.dict())
            counts = upkeep.stats(ledger)["phases"]
        except RetryPolicyError as error:
            messages.error(request, str(error))
        chosen = request.GET.get("phase", "held")
        held = [row.digest for row in shown.rows if row.held]
        stored = in_outbox(held)
        context: dict[str, Any] = {
            "title": "Sends",
            "page": shown,
            "counts": counts,
            "chosen": request.GET,
            "views": [(name, title, name == chosen) for name, (title, _) in VIEWS.items()],
            "ages": [(name, title) for name, (title, _) in AGES.items()],
            "actions": self._actions(request, bool(stored)) if held else [],
            "stored": stored,
        }
        return self._render(request, "list.html", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One record: all that the ledger keeps of it, and who said what about it."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        try:
            found = row(settings.required_ledger(), object_id)
        except RetryPolicyError as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(reverse("admin:retrypolicy_send_changelist", current_app=self.admin_site.name))
        if found is None:
            raise Http404("there is no such record in the ledger")
        context = {
            "title": found.record.label or found.short,
            "row": found,
            "actions": self._actions(request, bool(in_outbox([found.digest]))) if found.held else [],
            "history": LogEntry.objects.filter(content_type=self._content_type(), object_id=object_id),
        }
        return self._render(request, "detail.html", context)

    # -- actions

    def _actions(self, request: HttpRequest, stored: bool) -> list[tuple[str, str]]:
        if not self.has_change_permission(request):
            return []
        return [(name, title) for name, (_, title, _) in ACTIONS.items() if stored or name != AGAIN]

    def _act(self, request: HttpRequest) -> HttpResponse:
        if not self.has_change_permission(request):
            raise PermissionDenied
        back = HttpResponseRedirect(self._back(request.POST))
        action = ACTIONS.get(request.POST.get("action", ""))
        if action is None:
            messages.error(request, "Choose what became of them.")
            return back
        try:
            ledger = settings.required_ledger()
            found = [row(ledger, digest) for digest in request.POST.getlist("send")]
            held = [each for each in found if each is not None and each.held]
            if not held:
                messages.warning(request, "None of what you chose is held now; nothing was changed.")
                return back
            stored: dict[str, OutboxMessage] = {}
            if request.POST["action"] == AGAIN:
                stored = in_outbox([each.digest for each in held])
                if len(stored) < len(held):
                    missing = len(held) - len(stored)
                    messages.warning(request, f"{missing} of them not in the outbox: whoever has the message sends it.")
                    held = [each for each in held if each.digest in stored]
                if not held:
                    return back
            if "confirmed" in request.POST:
                self._resolve(request, ledger, held, action, stored)
            else:
                context = {
                    "title": action[1],
                    "rows": held,
                    "action": request.POST["action"],
                    "consequence": action[2],
                    "back": request.POST.get("back", ""),
                }
                return self._render(request, "confirm.html", context)
        except RetryPolicyError as error:
            messages.error(request, str(error))
        return back

    def _resolve(
        self,
        request: HttpRequest,
        ledger: Ledger,
        held: list[Row],
        action: tuple[Verdict, str, str],
        stored: dict[str, OutboxMessage],
    ) -> None:
        verdict, title, _ = action
        by = f"{request.user.get_username()} in the admin"
        done = 0
        for each in held:
            if each.digest in stored:
                why = send_again(stored[each.digest], by=by)
            else:
                why = upkeep.resolve(ledger, each.record, verdict, by=by).why
                look_at(each.digest)
            if why:
                messages.warning(request, f"{each.record.label or each.short}: not changed, {why}.")
                continue
            done += 1
            LogEntry.objects.create(
                user_id=request.user.pk,
                content_type=self._content_type(),
                object_id=each.digest,
                object_repr=(each.record.label or each.short)[:200],
                action_flag=CHANGE,
                change_message=f"{verdict}: was held, {'sent again' if each.digest in stored else _BECAME[verdict]}",
            )
        if done:
            messages.success(request, f"{done} send(s) resolved: {title.lower()}.")

    def _back(self, posted: QueryDict) -> str:
        wanted = QueryDict(posted.get("back", ""))
        kept = QueryDict(mutable=True)
        for name in ("phase", "provider", "age", "q"):
            if name in wanted:
                kept[name] = wanted[name]
        place = reverse("admin:retrypolicy_send_changelist", current_app=self.admin_site.name)
        return f"{place}?{kept.urlencode()}" if kept else place

    # -- parts

    def _content_type(self) -> ContentType:
        return ContentType.objects.get_for_model(Send)

    def _render(self, request: HttpRequest, name: str, context: dict[str, Any]) -> TemplateResponse:
        request.current_app = self.admin_site.name
        context = {**self.admin_site.each_context(request), "opts": Send._meta, **context}
        return TemplateResponse(request, f"admin/retrypolicy/send/{name}", context)


admin.site.register(OutboxMessage, OutboxAdmin)
