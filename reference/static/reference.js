// The try-it console, the examples that follow it and the copy buttons of the API reference page. Nothing here is stored, and
// nothing is fetched from anywhere but the origin of the page.

const $ = (id) => document.getElementById(id);
const BASE_URL = new URL("v1", document.baseURI).href;

/** Turns the bytes of an event stream, cut anywhere, into the data of its events. */
export class EventReader {
  #decoder = new TextDecoder(); // keeps a split character for the next read, drops a byte order mark
  #line = "";
  #data = [];
  #afterCarriageReturn = false;

  /** The data of each event that these bytes complete, in order. */
  read(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return [];
    if (this.#afterCarriageReturn && text.startsWith("\n")) text = text.slice(1);
    this.#afterCarriageReturn = text.endsWith("\r");
    const lines = (this.#line + text).split(/\r\n|\r|\n/);
    this.#line = lines.pop();
    return lines.flatMap((line) => this.#event(line));
  }

  /** [data] if this line ends an event, else []. */
  #event(line) {
    if (line === "") {
      const data = this.#data;
      this.#data = [];
      return data.length ? [data.join("\n")] : [];
    }
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "data") this.#data.push(value);
    return [];
  }
}

/** The text as one word of a shell. */
function shellQuoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** The request in code, by language; each reads the token from the environment. */
const CODE = {
  curl: (body) =>
    [
      `curl ${body.stream ? "-N " : ""}${shellQuoted(`${BASE_URL}/chat/completions`)}`,
      `-H "Authorization: Bearer $ACCESS_TOKEN"`,
      `-H "Content-Type: application/json"`,
      `-d ${shellQuoted(`{\n${fields(body, (name, value) => `    "${name}": ${literal(value, "    ")}`).join(",\n")}\n  }`)}`,
    ].join(" \\\n  "),

  python: ({ brand_id, requested_by, ...body }) =>
    [
      "import os\n\nfrom openai import OpenAI\n",
      `client = OpenAI(\n    base_url=${JSON.stringify(BASE_URL)},\n    api_key=os.environ["ACCESS_TOKEN"],\n)`,
      `${body.stream ? "stream" : "completion"} = client.chat.completions.create(`,
      ...fields(body, (name, value) => `    ${name}=${literal(value, "    ", ["False", "True"])},`),
      `    extra_body=${literal({ brand_id, requested_by })},`,
      ")",
      body.stream
        ? 'for chunk in stream:\n    print(chunk.choices[0].delta.content or "", end="", flush=True)'
        : "print(completion.choices[0].message.content)",
    ].join("\n"),

  javascript: (body) =>
    [
      'import OpenAI from "openai";\n',
      "const client = new OpenAI({",
      `  baseURL: ${JSON.stringify(BASE_URL)},`,
      "  apiKey: process.env.ACCESS_TOKEN,",
      "});",
      `const ${body.stream ? "stream" : "completion"} = await client.chat.completions.create({`,
      ...fields(body, (name, value) => `  ${name}: ${literal(value, "  ")},`),
      "});",
      body.stream
        ? 'for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content ?? "");'
        : "console.log(completion.choices[0].message.content);",
    ].join("\n"),
};

/** A line for each field that is sent. */
function fields(body, line) {
  return Object.entries(body)
    .filter(([name, value]) => value !== undefined && !(name === "stream" && value === false))
    .map(([name, value]) => line(name, value));
}

/** A JSON value in code, its items one to a line: strings and numbers are the same everywhere. */
function literal(value, indent = "", booleans = ["false", "true"]) {
  if (Array.isArray(value)) {
    return `[\n${value.map((item) => `${indent}  ${literal(item)}`).join(",\n")}\n${indent}]`;
  }
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `"${name}": ${literal(item)}`).join(", ")}}`;
  }
  return typeof value === "boolean" ? booleans[Number(value)] : JSON.stringify(value);
}

/** The text with what stands between backticks as code. */
function withCode(text) {
  return text.split("`").map((part, index) => {
    const node = document.createElement(index % 2 ? "code" : "span");
    node.textContent = part;
    return node;
  });
}

/** A failure that the service, the network or the end of the body told of. */
class Failure extends Error {
  constructor(code, message, status = "") {
    super(message);
    this.code = code;
    this.status = status;
  }
}

// The request -------------------------------------------------------------------------------

/** What was typed, as a number if it is one: the service says what is wrong with the rest. */
function numberTyped(id) {
  const text = $(id).value.trim();
  if (text === "") return undefined;
  return Number.isFinite(Number(text)) ? Number(text) : text;
}

function requestBody() {
  const messages = [...$("message-list").children].map((row) => ({
    role: row.querySelector(".role").value,
    content: row.querySelector(".content").value,
  }));
  return {
    model: $("model").value,
    messages,
    temperature: numberTyped("temperature"),
    max_tokens: numberTyped("max_tokens"),
    stream: $("stream").checked,
    brand_id: $("brand_id").value,
    requested_by: $("requested_by").value,
  };
}

function showCode() {
  const body = requestBody();
  for (const [language, write] of Object.entries(CODE)) $(language).textContent = write(body);
}

function numberMessages() {
  const rows = [...$("message-list").children];
  rows.forEach((row, index) => {
    row.querySelector(".role").setAttribute("aria-label", `Role of message ${index + 1}`);
    row.querySelector(".content").setAttribute("aria-label", `Content of message ${index + 1}`);
    row.querySelector(".remove").setAttribute("aria-label", `Remove message ${index + 1}`);
    row.querySelector(".remove").disabled = rows.length === 1;
  });
  showCode();
}

function addMessage(content) {
  const row = $("message-row").content.firstElementChild.cloneNode(true);
  row.querySelector(".content").value = content;
  row.querySelector(".remove").addEventListener("click", () => {
    const neighbour = row.previousElementSibling ?? row.nextElementSibling;
    row.remove();
    numberMessages();
    neighbour.querySelector(".content").focus();
  });
  $("message-list").append(row);
  numberMessages();
  return row;
}

// The answer --------------------------------------------------------------------------------

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;

/** One call, from its request to what is shown of its answer. */
class Call {
  #abort = new AbortController();
  #text = document.createTextNode("");
  #raw = document.createTextNode("");
  #started = performance.now();
  #done = false;

  stop() {
    this.#abort.abort();
  }

  async run() {
    this.#show("sending", "Sending the request");
    try {
      const response = await this.#send();
      this.#headers(response);
      if (!response.ok) throw failureOf(response, await this.#read(response));
      if (response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
        await this.#stream(response.body);
      } else {
        this.#completion(JSON.parse(await this.#read(response)));
      }
      this.#show("done", "The answer is complete");
    } catch (error) {
      if (this.#abort.signal.aborted) this.#show("stopped", "Stopped; the answer is incomplete");
      else this.#fail(error);
    } finally {
      this.#abort.abort(); // a stream that failed is not read to its end
    }
    $("total-time").textContent = seconds(performance.now() - this.#started);
  }

  #send() {
    for (const id of ["first-token", "total-time", "tokens", "finish-reason"]) $(id).textContent = "–";
    for (const id of ["answered-model", "request-id"]) $(id).textContent = "–";
    $("answer-text").replaceChildren(this.#text);
    $("failure").hidden = true;
    $("remarks").hidden = true;
    $("raw-text").replaceChildren(this.#raw);
    $("answer").scrollIntoView({ block: "nearest" });
    return fetch(`${BASE_URL}/chat/completions`, {
      method: "POST",
      headers: {
        Authorization: `Bearer ${$("token").value}`,
        "Content-Type": "application/json",
      },
      body: JSON.stringify(requestBody()),
      signal: this.#abort.signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  }

  #headers(response) {
    const head = [`HTTP ${response.status} ${response.statusText}`.trim()];
    response.headers.forEach((value, name) => head.push(`${name}: ${value}`));
    this.#raw.appendData(`${head.join("\n")}\n\n`);
    $("request-id").textContent = response.headers.get("X-Request-Id") ?? "–";
    const remarks = [
      ["Ignored", "X-Ignored-Parameters"],
      ["Adjusted", "X-Adjusted-Parameters"],
      ["Retry after", "Retry-After"],
    ].filter(([, name]) => response.headers.has(name));
    $("remarks").replaceChildren(
      ...remarks.map(([label, name]) => {
        const item = document.createElement("li");
        item.textContent = `${label}: ${response.headers.get(name)}`;
        return item;
      }),
    );
    $("remarks").hidden = remarks.length === 0;
  }

  /** The whole body of an answer that is no stream. */
  async #read(response) {
    const text = await response.text();
    this.#raw.appendData(text);
    return text;
  }

  #completion(completion) {
    const [choice] = completion.choices;
    this.#write(choice.message.content);
    this.#facts(completion, choice.finish_reason);
  }

  async #stream(body) {
    const events = new EventReader();
    const decoder = new TextDecoder();
    const reader = body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      this.#raw.appendData(decoder.decode(value, { stream: true }));
      this.#events(events.read(value));
    }
    if (!this.#done) {
      throw new Failure("incomplete_stream", "The stream ended without [DONE]: text is missing.");
    }
  }

  #events(events) {
    let text = "";
    for (const data of events) {
      if (data === "[DONE]") {
        this.#done = true;
        continue;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) {
        this.#arrive(text);
        throw new Failure(chunk.error.code, chunk.error.message, "in the stream");
      }
      const choice = chunk.choices[0];
      text += choice?.delta.content ?? "";
      this.#facts(chunk, choice?.finish_reason);
    }
    this.#arrive(text);
  }

  #arrive(text) {
    if (text && this.#text.length === 0) {
      $("first-token").textContent = seconds(performance.now() - this.#started);
      this.#show("streaming", "The answer is coming in");
    }
    this.#write(text);
  }

  /** Adds to the answer and keeps its end in view for those who have not scrolled up. */
  #write(text) {
    const box = $("answer");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    this.#text.appendData(text);
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  #facts({ model, usage }, finishReason) {
    if (model) $("answered-model").textContent = model;
    if (finishReason) $("finish-reason").textContent = finishReason;
    if (usage) {
      const { prompt_tokens: prompt, completion_tokens: completion, total_tokens: total } = usage;
      $("tokens").textContent = `${prompt} + ${completion} = ${total}`;
    }
  }

  #fail(error) {
    const code = error.code ?? "no_answer";
    $("failure-code").replaceChildren(codeLink(code));
    $("failure-status").textContent = error.status ?? "";
    $("failure-message").replaceChildren(...withCode(error.message));
    $("failure").hidden = false;
    $("answer").scrollTop = $("answer").scrollHeight;
    this.#show("failed", `Failed: ${code}`);
  }

  #show(state, sentence) {
    const running = state === "sending" || state === "streaming";
    $("result").dataset.state = state;
    $("answer").setAttribute("aria-busy", String(running));
    $("status").textContent = sentence;
    swapButtons(running);
  }
}

/** The code, as a link to what the page says of it. */
function codeLink(code) {
  const link = document.createElement($(`error-${code}`) ? "a" : "span");
  if (link.tagName === "A") link.href = `#error-${code}`;
  link.textContent = code;
  return link;
}

/** What an answer with an error status says, whether or not it speaks the contract's form. */
function failureOf(response, text) {
  const status = `HTTP ${response.status} ${response.statusText}`.trim();
  try {
    const { error, message } = JSON.parse(text);
    return new Failure(error, message, status);
  } catch {
    return new Failure("not_json", text.slice(0, 300), status);
  }
}

/** Lets Send and Stop take turns without losing the keyboard's place. */
function swapButtons(running) {
  const [on, off] = running ? [$("stop"), $("send")] : [$("send"), $("stop")];
  const focused = document.activeElement === off;
  on.disabled = false;
  if (focused) on.focus();
  off.disabled = true;
}

// Copying -----------------------------------------------------------------------------------

async function copy(button) {
  const source = $(button.dataset.copy);
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(source.textContent);
  } else {
    // Outside https and localhost there is no clipboard object.
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  $("copied").textContent = `${button.textContent}: done`;
  button.classList.add("copied");
  setTimeout(() => button.classList.remove("copied"), 1500);
}

// The page ----------------------------------------------------------------------------------

/** Takes a token that came in the address, as `#token=…`, out of the address and into its field. */
function takeToken() {
  const [, token] = /^#token=(.+)$/.exec(location.hash) ?? [];
  if (token === undefined) return;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    $("token").value = decodeURIComponent(token);
  } catch {
    $("token").value = token; // a percent sign of its own
  }
}

/** Whether there is a token to send; if not, the cursor waits for one. */
function hasToken() {
  const missing = $("token").value === "";
  $("token").setAttribute("aria-invalid", String(missing));
  if (missing) {
    $("status").textContent = "An access token is needed first";
    $("token").focus();
  }
  return !missing;
}

/** Shows all examples of the page in one language. */
function chooseLanguage(event) {
  if (event.target.type !== "radio") return;
  for (const radio of document.querySelectorAll(`[type="radio"][value="${event.target.value}"]`)) {
    radio.checked = true;
  }
}

function start() {
  let call = null;
  const form = $("console");
  form.addEventListener("input", showCode);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!hasToken()) return;
    call = new Call();
    call.run();
  });
  form.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (sends && !$("send").disabled) form.requestSubmit();
  });
  if (/Mac|iP/.test(navigator.platform)) $("modifier").textContent = "⌘";
  document.addEventListener("change", chooseLanguage);
  addEventListener("hashchange", takeToken);
  takeToken();
  $("stop").addEventListener("click", () => call.stop());
  $("add-message").addEventListener("click", () => addMessage("").querySelector(".content").focus());
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(button));
  }
  // A proxy in front may speak https where the service was asked over http.
  for (const element of document.querySelectorAll(".at-base")) {
    element.textContent = element.textContent.replace(document.body.dataset.base, BASE_URL);
  }
  addMessage("Say hello in five words.");
}

start();
