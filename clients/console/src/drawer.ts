// The drawer "Configure SIEM".

import { Code, SiemError, v1 } from "@siem-relay/client/browser";
import { h, setAttribute } from "./dom.ts";
import { describe, notify } from "./notices.ts";
import type { Session } from "./session.ts";

interface Field {
  readonly input: HTMLInputElement;
  readonly error: HTMLParagraphElement;
  readonly element: HTMLElement;
}

function field(id: string, label: string, hint: string, placeholder: string): Field {
  const input = h("input", { id, name: id, placeholder, autocomplete: "off", spellcheck: false });
  const error = h("p", { id: `${id}-error`, className: "error" });
  input.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
  input.addEventListener("input", () => mark(input, error, ""));
  const element = h(
    "div",
    { className: "field" },
    h("label", { htmlFor: id }, label),
    input,
    h("p", { id: `${id}-hint`, className: "hint" }, hint),
    error,
  );
  return { input, error, element };
}

function mark(input: HTMLInputElement, error: HTMLParagraphElement, text: string): void {
  error.textContent = text;
  setAttribute(input, "aria-invalid", text === "" ? undefined : "true");
}

async function copy(text: string, subject: string): Promise<void> {
  try {
    // Absent on pages without TLS that are not of loopback.
    await navigator.clipboard.writeText(text);
    notify("success", `${subject} copied`);
  } catch {
    notify("failure", `The browser does not let this page copy. Select the text of ${subject} and copy it.`);
  }
}

function download(document_: v1.OnboardingDocument): void {
  const url = URL.createObjectURL(new Blob([document_.text], { type: "text/plain" }));
  h("a", { href: url, download: document_.fileName }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** The drawer, which is modal: it has the focus until it is closed. */
export class Drawer {
  readonly element: HTMLDialogElement;
  readonly #organization = field("organization_id", "Organization", "Letters, digits, _ and -.", "acme");
  readonly #stream = field(
    "kinesis_stream_arn",
    "AWS Kinesis ARN",
    "The data stream that receives the events.",
    "arn:aws:kinesis:REGION:ACCOUNT:stream/NAME",
  );
  readonly #role = field("role_arn", "Role ARN", "The role that may write to the stream.", "arn:aws:iam::ACCOUNT:role/NAME");
  readonly #externalId = field("external_id", "External ID", "The secret in the trust policy of the role.", "");
  readonly #keep = h("input", { type: "checkbox", id: "keep" });
  readonly #keepRow = h("label", { className: "check" }, this.#keep, "Use the previous External ID until the new one works");
  readonly #problem = h("p", { className: "error", attrs: { role: "alert" } });
  readonly #documents = h("div", { className: "documents" });
  readonly #documentsError = h("p", { className: "error", attrs: { role: "alert" } });
  readonly #save = h("button", { type: "submit", className: "primary" }, "Save");
  readonly #copyId = h("button", { type: "button", disabled: true }, "Copy");
  readonly #issue = h("button", { type: "button" }, "Issue an External ID");
  readonly #show = h("button", { type: "button" }, "Show the documents");
  #etag = "";
  // Number of the opening: answers of an earlier one are ignored.
  #opening = 0;

  constructor(
    private readonly session: Session,
    private readonly templateUrl: () => string | undefined,
    private readonly onSaved: (integration: v1.Integration) => void,
  ) {
    const cancel = h("button", { type: "button" }, "Cancel");
    const form = h(
      "form",
      { noValidate: true },
      this.#organization.element,
      this.#stream.element,
      this.#role.element,
      this.#externalId.element,
      h("div", { className: "buttons" }, this.#issue, this.#copyId),
      this.#keepRow,
      h(
        "details",
        {},
        h("summary", {}, "Prepare the AWS account"),
        h(
          "p",
          {},
          "Fill in both ARNs as they shall be, and issue an External ID. The documents create the stream and the role by CloudFormation or Terraform, or show the IAM policies to apply by hand.",
        ),
        h("div", { className: "buttons" }, this.#show),
        this.#documentsError,
        this.#documents,
      ),
      this.#problem,
      h("div", { className: "buttons end" }, cancel, this.#save),
    );
    this.element = h(
      "dialog",
      { className: "drawer", attrs: { "aria-labelledby": "drawer-title" } },
      h("h2", { id: "drawer-title" }, "Configure SIEM"),
      form,
    );
    cancel.addEventListener("click", () => this.element.close());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#submit();
    });
    this.#issue.addEventListener("click", () => void this.#generate());
    this.#copyId.addEventListener("click", () => void copy(this.#externalId.input.value, "External ID"));
    this.#externalId.input.addEventListener("input", () => this.#externalIdChanged());
    this.#show.addEventListener("click", () => void this.#getDocuments());
    // The secret does not stay in the page.
    this.element.addEventListener("close", () => {
      this.#opening += 1;
      this.#externalId.input.value = "";
      this.#documents.replaceChildren();
    });
  }

  /** Opens the drawer for an organization, or for one that is still to be named. */
  open(organizationId: string, integration: v1.Integration | undefined): void {
    this.#opening += 1;
    this.#etag = integration?.etag ?? "";
    this.#organization.input.value = organizationId;
    this.#organization.input.readOnly = organizationId !== "";
    this.#stream.input.value = integration?.kinesisStreamArn ?? "";
    this.#role.input.value = integration?.roleArn ?? "";
    this.#externalId.input.value = "";
    this.#externalId.input.placeholder =
      integration === undefined ? "" : `Unchanged (ends with ${integration.externalIdHint})`;
    this.#keep.checked = integration !== undefined;
    this.#keepRow.hidden = integration === undefined;
    for (const { input, error } of this.#fields()) {
      mark(input, error, "");
    }
    for (const place of [this.#problem, this.#documentsError, this.#documents]) {
      place.replaceChildren();
    }
    this.#externalIdChanged();
    this.#setBusy(false);
    this.element.showModal();
    (organizationId === "" ? this.#organization : this.#stream).input.focus();
  }

  #fields(): Field[] {
    return [this.#organization, this.#stream, this.#role, this.#externalId];
  }

  #externalIdChanged(): void {
    this.#copyId.disabled = this.#externalId.input.value === "";
  }

  #setBusy(isBusy: boolean): void {
    this.#save.disabled = isBusy;
    this.#save.textContent = isBusy ? "Saving…" : "Save";
  }

  // Shows each violation beside its field, and the rest in `place`.
  #refuse(error: unknown, place: HTMLElement, names: Record<string, Field>): void {
    const rest: string[] = [];
    let first: HTMLInputElement | undefined;
    const violations = error instanceof SiemError ? error.violations : [];
    for (const { field: name, description } of violations) {
      const target = names[name];
      if (target === undefined) {
        rest.push(`${name}: ${description}`);
        continue;
      }
      const before = target.error.textContent ?? "";
      mark(target.input, target.error, before === "" ? description : `${before}; ${description}`);
      first ??= target.input;
    }
    place.textContent = violations.length === 0 ? describe(error) : rest.join("\n");
    first?.focus();
  }

  async #submit(): Promise<void> {
    const opening = this.#opening;
    for (const { input, error } of this.#fields()) {
      mark(input, error, "");
    }
    this.#problem.textContent = "";
    this.#setBusy(true);
    const externalId = this.#externalId.input.value.trim();
    try {
      const { integration, warnings } = await this.session.client.configure({
        organizationId: this.#organization.input.value.trim(),
        kinesisStreamArn: this.#stream.input.value.trim(),
        roleArn: this.#role.input.value.trim(),
        externalId,
        etag: this.#etag,
        keepPreviousExternalId: this.#etag !== "" && externalId !== "" && this.#keep.checked,
      });
      if (opening === this.#opening) {
        this.element.close();
      }
      notify("success", ["The SIEM integration is saved.", ...warnings].join(" "));
      if (integration !== undefined) {
        this.onSaved(integration);
      }
    } catch (error) {
      if (opening !== this.#opening) {
        notify("failure", describe(error));
        return;
      }
      this.#setBusy(false);
      this.#refuse(error, this.#problem, {
        organization_id: this.#organization,
        kinesis_stream_arn: this.#stream,
        role_arn: this.#role,
        external_id: this.#externalId,
      });
    }
  }

  async #generate(): Promise<void> {
    const opening = this.#opening;
    this.#issue.disabled = true;
    mark(this.#externalId.input, this.#externalId.error, "");
    try {
      const organizationId = this.#organization.input.value.trim();
      const { externalId } = await this.session.client.generateExternalId({ organizationId });
      if (opening === this.#opening) {
        this.#externalId.input.value = externalId;
        this.#externalIdChanged();
      }
    } catch (error) {
      if (opening === this.#opening) {
        this.#refuse(error, this.#externalId.error, { organization_id: this.#organization });
      }
    } finally {
      this.#issue.disabled = false;
    }
  }

  async #getDocuments(): Promise<void> {
    const opening = this.#opening;
    this.#show.disabled = true;
    this.#documentsError.textContent = "";
    try {
      const answer = await this.session.client.getOnboarding({
        stream: this.#stream.input.value.trim(),
        roleName: this.#role.input.value.trim().split("/").at(-1) ?? "",
        externalId: this.#externalId.input.value.trim(),
      });
      if (opening !== this.#opening) {
        return;
      }
      this.#role.input.value ||= answer.roleArn;
      this.#documents.replaceChildren(...answer.documents.map((each) => this.#document(each)));
      const link = this.#quickCreate(answer);
      if (link !== undefined) {
        this.#documents.prepend(link);
      }
    } catch (error) {
      if (opening === this.#opening) {
        const isPermission = error instanceof SiemError && error.code === Code.PermissionDenied;
        this.#refuse(error, this.#documentsError, isPermission ? {} : {
          stream: this.#stream,
          role_name: this.#role,
          external_id: this.#externalId,
        });
      }
    } finally {
      this.#show.disabled = false;
    }
  }

  #document(each: v1.OnboardingDocument): HTMLElement {
    const copyIt = h("button", { type: "button", attrs: { "aria-label": `Copy ${each.fileName}` } }, "Copy");
    const downloadIt = h("button", { type: "button", attrs: { "aria-label": `Download ${each.fileName}` } }, "Download");
    copyIt.addEventListener("click", () => void copy(each.text, each.fileName));
    downloadIt.addEventListener("click", () => download(each));
    return h(
      "section",
      { attrs: { "aria-label": each.fileName } },
      h("h3", {}, each.fileName),
      h("p", {}, each.title),
      h("pre", { tabIndex: 0, attrs: { role: "region", "aria-label": `Text of ${each.fileName}` } }, each.text),
      h("div", { className: "buttons" }, copyIt, downloadIt),
    );
  }

  // https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cfn-console-create-stacks-quick-create-links.html
  // Without the external ID, which would be in the browser's history; CloudFormation asks for it.
  #quickCreate(answer: v1.GetOnboardingResponse): HTMLElement | undefined {
    const templateURL = this.templateUrl();
    const [, partition, , region, , resource] = answer.kinesisStreamArn.split(":");
    if (templateURL === undefined || partition !== "aws" || region === undefined) {
      return undefined;
    }
    const query = new URLSearchParams({
      templateURL,
      stackName: "siem-relay",
      param_StreamName: resource?.split("/").at(-1) ?? "",
      param_RoleName: answer.roleArn.split("/").at(-1) ?? "",
      param_TrustedPrincipal: answer.principal,
    });
    const href = `https://${region}.console.aws.amazon.com/cloudformation/home?region=${region}#/stacks/create/review?${query}`;
    const link = h("a", { href, target: "_blank", rel: "noopener noreferrer" }, "Create the stack in the AWS console");
    return h("p", {}, link, " (copy the External ID first: CloudFormation asks for it)");
  }
}
