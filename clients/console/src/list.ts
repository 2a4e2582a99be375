// The list of integrations. Only the rows in view are elements, so that many thousands cost no more than a few.

import { type v1 } from "@siem-relay/client/browser";
import { h, setAttribute, setText } from "./dom.ts";
import { lookOf, statusLabel } from "./status.ts";

const rowHeight = 40;
// Rows above and below those in view.
const overscan = 4;

/** A list box of organizations with their statuses. */
export class List {
  readonly element: HTMLElement;
  readonly #box: HTMLDivElement;
  readonly #rows: HTMLDivElement;
  readonly #count: HTMLParagraphElement;
  readonly #filter: HTMLSelectElement;
  readonly #search: HTMLInputElement;
  #all: ReadonlyMap<string, v1.StatusCurrent> = new Map();
  #shown: string[] = [];
  #active = 0;
  #selected = "";
  #isScheduled = false;
  #isComplete = false;

  constructor(private readonly onSelect: (organizationId: string) => void) {
    this.#filter = h("select", { id: "filter" });
    for (const name of ["All", "Active", "Unauthorized", "Failing", "Unknown"]) {
      this.#filter.append(h("option", { value: name === "All" ? "" : name, textContent: name }));
    }
    this.#search = h("input", { id: "search", type: "search", autocomplete: "off", spellcheck: false });
    this.#rows = h("div", { className: "rows", attrs: { role: "presentation" } });
    this.#box = h(
      "div",
      { className: "box", tabIndex: 0, attrs: { role: "listbox", "aria-labelledby": "integrations" } },
      this.#rows,
    );
    this.#count = h("p", { className: "count", attrs: { role: "status" } }, "Loading…");
    this.element = h(
      "section",
      { className: "panel list", attrs: { "aria-labelledby": "integrations" } },
      h("h2", { id: "integrations" }, "Integrations"),
      h(
        "div",
        { className: "filters" },
        h("label", {}, "Status", this.#filter),
        h("label", {}, "Search", this.#search),
      ),
      this.#box,
      this.#count,
    );
    this.#filter.addEventListener("change", () => this.#refilter());
    this.#search.addEventListener("input", () => this.#refilter());
    this.#box.addEventListener("scroll", () => this.#schedule());
    this.#box.addEventListener("keydown", (event) => this.#key(event));
    this.#box.addEventListener("click", (event) => {
      const row = (event.target as Element).closest<HTMLElement>("[role=option]");
      if (row !== null) {
        this.#active = Number(row.dataset["index"]);
        this.#choose();
      }
    });
    new ResizeObserver(() => this.#schedule()).observe(this.#box);
  }

  /** Shows these statuses. The same map may have changed since the last call. */
  update(statuses: ReadonlyMap<string, v1.StatusCurrent>, isComplete: boolean): void {
    this.#all = statuses;
    this.#isComplete = isComplete;
    this.#schedule();
  }

  /** Marks the organization whose card is shown. */
  select(organizationId: string): void {
    this.#selected = organizationId;
    this.#schedule();
  }

  #refilter(): void {
    this.#active = 0;
    this.#box.scrollTop = 0;
    this.#schedule();
  }

  // Many changes may arrive between two frames.
  #schedule(): void {
    if (!this.#isScheduled) {
      this.#isScheduled = true;
      requestAnimationFrame(() => {
        this.#isScheduled = false;
        this.#render();
      });
    }
  }

  #render(): void {
    const { value: wanted } = this.#filter;
    const text = this.#search.value.trim().toLowerCase();
    const active = this.#shown[this.#active];
    this.#shown = [...this.#all.keys()]
      .filter((id) => wanted === "" || lookOf(this.#all.get(id)?.status).name === wanted)
      .filter((id) => id.toLowerCase().includes(text))
      .sort();
    const moved = active === undefined ? -1 : this.#shown.indexOf(active);
    this.#active = moved >= 0 ? moved : Math.min(this.#active, Math.max(this.#shown.length - 1, 0));
    const first = Math.max(Math.floor(this.#box.scrollTop / rowHeight) - overscan, 0);
    const last = Math.ceil((this.#box.scrollTop + this.#box.clientHeight) / rowHeight) + overscan;
    const indexes = new Set<number>();
    for (let index = first; index < Math.min(last, this.#shown.length); index += 1) {
      indexes.add(index);
    }
    this.#rows.style.height = `${this.#shown.length * rowHeight}px`;
    this.#rows.replaceChildren(...[...indexes].map((index) => this.#row(index)));
    setAttribute(this.#box, "aria-activedescendant", indexes.has(this.#active) ? `row-${this.#active}` : undefined);
    const [shown, all] = [this.#shown.length, this.#all.size].map((number) => (number ?? 0).toLocaleString());
    const none = "There are no integrations yet. Configure the first one.";
    const count = this.#all.size === 0 ? none : shown === all ? `${all} integrations` : `${shown} of ${all} integrations`;
    setText(this.#count, this.#isComplete ? count.replace(/^1 integrations$/, "1 integration") : "Loading…");
  }

  #row(index: number): HTMLElement {
    const id = this.#shown[index] ?? "";
    const row = h(
      "div",
      {
        id: `row-${index}`,
        className: "row",
        attrs: {
          role: "option",
          "aria-selected": String(id === this.#selected),
          "aria-setsize": String(this.#shown.length),
          "aria-posinset": String(index + 1),
          "data-index": String(index),
        },
      },
      h("span", { className: "name" }, id),
      statusLabel(lookOf(this.#all.get(id)?.status)),
    );
    row.classList.toggle("current", index === this.#active);
    row.style.top = `${index * rowHeight}px`;
    return row;
  }

  #key(event: KeyboardEvent): void {
    const page = Math.max(Math.floor(this.#box.clientHeight / rowHeight) - 1, 1);
    const end = this.#shown.length - 1;
    const targets: Record<string, number> = {
      ArrowDown: this.#active + 1,
      ArrowUp: this.#active - 1,
      PageDown: this.#active + page,
      PageUp: this.#active - page,
      Home: 0,
      End: end,
    };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#choose();
      return;
    }
    const target = targets[event.key];
    if (target === undefined || end < 0) {
      return;
    }
    event.preventDefault();
    this.#active = Math.min(Math.max(target, 0), end);
    const top = this.#active * rowHeight;
    this.#box.scrollTop = Math.min(Math.max(this.#box.scrollTop, top + rowHeight - this.#box.clientHeight), top);
    this.#schedule();
  }

  #choose(): void {
    const id = this.#shown[this.#active];
    if (id !== undefined) {
      this.onSelect(id);
    }
  }
}
