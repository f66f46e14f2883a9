// The control socket of a host process: HTTP over a Unix socket that only the user can reach; protocol.ts has the
// format. Whatever a peer sends is bounded in size and time and checked before anything is done; whatever it does,
// the host and other peers are not disturbed.

import { chmodSync } from 'node:fs';
import { lstat, unlink } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { ZazenError } from '../base/errors.ts';
import { COMMANDS, parseCommand } from './command.ts';
import type { Command, CommandOf } from './command.ts';
import { Control } from './control.ts';
import type { ControlOptions } from './control.ts';
import type { Host } from '../host/types.ts';
import {
  BODY_MAX_BYTES, COMMAND_PATH, CONSOLE_PATH, CONSOLE_PROTOCOL, HEADERS_MAX_BYTES, JSON_TYPE, LINES_TYPE, describeError,
} from './protocol.ts';
import type { Answer, Progress } from './protocol.ts';
import { assertSocketPath, isListening, openRuntimeDirectory, socketPathFor } from './runtime-directory.ts';
import type { Environment } from './runtime-directory.ts';

export interface ServeOptions extends ControlOptions {
  readonly env: Environment;
  /** Instead of the one in the runtime directory. */
  readonly socketPath?: string;
  /** How long a peer may take over its request, and a console's reader over output that waits. */
  readonly patienceMillis?: number;
}

export interface ControlServer extends AsyncDisposable {
  readonly socketPath: string;
  /** Ends all connections and removes the socket. Closed twice is closed. */
  close(): Promise<void>;
}

const CONNECTIONS_MAX = 128;
const PATIENCE_MILLIS = 10_000;
/** What waits for a peer that does not read its events; beyond it, the peer is let go. */
const BACKLOG_MAX_BYTES = 2 ** 20;

/** Least time between two words on how far a command is. */
const PROGRESS_MILLIS = 50;

const STATUS_BY_CODE: Readonly<Record<string, number>> = {
  ZAZEN_COMMAND_TOO_LARGE: 413, ZAZEN_DOMAIN_UNKNOWN: 404, ZAZEN_STORE_ENOENT: 404, ZAZEN_DOMAIN_STATE: 409,
  ZAZEN_DOMAIN_NAME_TAKEN: 409, ZAZEN_INTERNAL: 500,
};

/** Errors: ZAZEN_RUNTIME_DIR, ZAZEN_SOCKET_PATH, ZAZEN_SOCKET_TAKEN. */
export async function serveControl(host: Host, options: ServeOptions): Promise<ControlServer> {
  const path = options.socketPath ?? socketPathFor(await openRuntimeDirectory(options.env), process.pid);
  const elsewhere = options.socketPath === undefined ? 'name another directory in ZAZEN_RUNTIME_DIR' : 'choose another path with --socket';
  assertSocketPath(path, elsewhere);
  const control = new Control(host, options);
  try {
    const served = new ServedControl(control, path, options);
    await served.listen(elsewhere);
    return served;
  } catch (error) {
    control.close();
    throw error;
  }
}

/** Or nothing any more. A link to one is none: what it leads to need not be ours to remove. */
const isSocket = (path: string): Promise<boolean> => lstat(path).then((facts) => facts.isSocket(), () => true);

class ServedControl implements ControlServer {
  readonly socketPath: string;
  readonly #control: Control;
  readonly #server: Server;
  readonly #patienceMillis: number;
  readonly #log: (line: string) => void;
  /** Upgraded connections, which the HTTP server has forgotten. */
  readonly #consoles = new Set<Duplex>();
  readonly #closing = new AbortController();
  #closed: Promise<void> | undefined;

  constructor(control: Control, socketPath: string, options: ServeOptions) {
    const { patienceMillis = PATIENCE_MILLIS, log = () => {} } = options;
    this.#control = control;
    this.socketPath = socketPath;
    this.#patienceMillis = patienceMillis;
    this.#log = log;
    this.#server = createServer({
      maxHeaderSize: HEADERS_MAX_BYTES, headersTimeout: patienceMillis, requestTimeout: patienceMillis,
      keepAliveTimeout: patienceMillis, connectionsCheckingInterval: Math.max(50, patienceMillis / 10),
    });
    this.#server.maxConnections = CONNECTIONS_MAX;
    this.#server.maxHeadersCount = 64;
    this.#server.on('request', (request, response) => void this.#serve(request, response));
    this.#server.on('upgrade', (request, socket, head) => this.#serveConsole(request, socket, head));
    this.#server.on('clientError', (_error, socket) => socket.destroy());
  }

  /** @param elsewhere what to do when it cannot be there */
  async listen(elsewhere: string): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#bind();
      } catch (error) {
        const { code, message } = error as NodeJS.ErrnoException;
        const isTaken = code === 'EADDRINUSE';
        if (isTaken && !await isSocket(this.socketPath)) {
          throw new ZazenError('ZAZEN_SOCKET_TAKEN', `${this.socketPath}: a file is there, and it is no socket`, {
            cause: error, hint: elsewhere,
          });
        }
        if (isTaken && attempt === 1 && !await isListening(this.socketPath)) {
          // Left behind by a process that was killed.
          await unlink(this.socketPath).catch(() => {});
          continue;
        }
        if (isTaken) {
          throw new ZazenError('ZAZEN_SOCKET_TAKEN', `${this.socketPath}: another host listens there`, {
            cause: error, hint: 'choose another path with --socket',
          });
        }
        throw new ZazenError('ZAZEN_SOCKET_PATH', `${this.socketPath}: cannot listen there: ${message}`, {
          cause: error, hint: elsewhere,
        });
      }
    }
  }

  #bind(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#server.once('error', reject);
    // The socket is made within the call of `listen`, so it never has another mode.
    const umask = process.umask(0o177);
    try {
      this.#server.listen(this.socketPath, () => {
        this.#server.off('error', reject);
        chmodSync(this.socketPath, 0o600);
        resolve();
      });
    } finally {
      process.umask(umask);
    }
    return promise;
  }

  close(): Promise<void> {
    return this.#closed ??= this.#close();
  }
  async #close(): Promise<void> {
    this.#closing.abort(new ZazenError('ZAZEN_HOST_CLOSED', 'the host has been closed'));
    const closed = new Promise<void>((resolve) => { this.#server.close(() => resolve()); });
    // Who waits for an answer gets one: what the abort made of it is written in this turn and the next.
    await new Promise((resolve) => { setImmediate(resolve); });
    for (const socket of this.#consoles) socket.destroy();
    this.#server.closeAllConnections();
    await closed;
    this.#control.close();
    // Node removes the socket itself when it closes; a file that is there none the less is somebody else's.
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // ---- commands

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('error', () => {});
    const gone = new AbortController();
    response.on('close', () => gone.abort(new ZazenError('ZAZEN_CLIENT_GONE', 'the client has gone')));
    const answers = new AnswerWriter(response, request.headers.accept === LINES_TYPE);
    try {
      checkRequest(request);
      const command = parseCommand(parseBody(await readBody(request)));
      await this.#answer(command, answers, AbortSignal.any([gone.signal, this.#closing.signal]));
    } catch (error) {
      if (gone.signal.aborted) return;
      answers.fail(this.#asOperatorError(error));
    }
    const late = setTimeout(() => response.destroy(), this.#patienceMillis);
    response.once('close', () => clearTimeout(late));
    if (response.closed) clearTimeout(late);
  }

  async #answer(command: Command, answers: AnswerWriter, signal: AbortSignal): Promise<void> {
    if (COMMANDS[command.command].answer === 'console') {
      throw new ZazenError('ZAZEN_COMMAND_INVALID', `${command.command} needs an upgraded connection`, {
        hint: `GET ${CONSOLE_PATH}?domain=NAME with Upgrade: ${CONSOLE_PROTOCOL}`,
      });
    }
    if (command.command === 'events' || command.command === 'store-watch') {
      return this.#follow(command, answers, signal);
    }
    answers.end(await this.#control.execute(command, {
      signal, log: (line) => answers.log(line), onProgress: (progress) => answers.progress(progress),
    }));
  }

  async #follow(
    command: CommandOf<'events' | 'store-watch'>, answers: AnswerWriter, signal: AbortSignal,
  ): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const stop = (): void => reject(signal.reason);
    const unfollow = this.#control.follow(command, (result) => {
      if (answers.stream(result)) return;
      reject(new ZazenError('ZAZEN_CLIENT_SLOW', 'the client does not read what it follows'));
    }, resolve);
    signal.addEventListener('abort', stop);
    if (signal.aborted) stop();
    try {
      answers.begin();
      await promise;
      answers.close();
    } finally {
      signal.removeEventListener('abort', stop);
      unfollow();
    }
  }

  /** A bug of ours is told to the host's operator, and the peer hears that there was one; the guests live on. */
  #asOperatorError(error: unknown): ZazenError {
    if (error instanceof ZazenError) return error;
    this.#log(`a command over the control socket failed: ${(error as Error)?.stack ?? String(error)}`);
    return new ZazenError('ZAZEN_INTERNAL', `an error within Zazen: ${(error as Error)?.message ?? String(error)}`);
  }

  // ---- consoles

  #serveConsole(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    socket.on('error', () => socket.destroy());
    let stream: Duplex;
    try {
      stream = this.#control.openConsole(readConsoleRequest(request));
    } catch (error) {
      refuseUpgrade(socket, this.#asOperatorError(error));
      return;
    }
    this.#consoles.add(socket);
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${CONSOLE_PROTOCOL}\r\n\r\n`);
    if (head.length > 0) socket.unshift(head);
    connectConsole(stream, socket as Socket, this.#patienceMillis);
    socket.once('close', () => this.#consoles.delete(socket));
  }
}

/**
 * Copies both ways. A reader that takes nothing while output waits would hold up the guest's console, so it is let go
 * after a while.
 */
function connectConsole(stream: Duplex, socket: Socket, patienceMillis: number): void {
  let timer: NodeJS.Timeout | undefined;
  const end = (): void => {
    clearTimeout(timer);
    stream.destroy();
    socket.destroy();
  };
  stream.on('data', (chunk: Buffer) => {
    if (socket.write(chunk)) return;
    stream.pause();
    timer = setTimeout(end, patienceMillis);
  });
  socket.on('drain', () => {
    clearTimeout(timer);
    stream.resume();
  });
  socket.on('data', (chunk: Buffer) => {
    if (!stream.write(chunk)) socket.pause();
  });
  stream.on('drain', () => socket.resume());
  // One that has gone altogether looks no different, and must not stay attached.
  socket.on('end', end);
  stream.on('end', () => socket.end());
  stream.on('error', end).on('close', () => { if (!stream.readableEnded) end(); });
  socket.on('close', end);
}

function readConsoleRequest(request: IncomingMessage): CommandOf<'console'> {
  const url = URL.parse(request.url ?? '', 'http://zazen');
  if (request.method !== 'GET' || url?.pathname !== CONSOLE_PATH || request.headers.upgrade !== CONSOLE_PROTOCOL) {
    throw new ZazenError('ZAZEN_COMMAND_INVALID', 'there is nothing to upgrade to here', {
      hint: `GET ${CONSOLE_PATH}?domain=NAME with Upgrade: ${CONSOLE_PROTOCOL}`,
    });
  }
  return parseCommand({ command: 'console', ...Object.fromEntries(url.searchParams) }) as CommandOf<'console'>;
}

function refuseUpgrade(socket: Duplex, error: ZazenError): void {
  const body = `${JSON.stringify({ error: describeError(error) })}\n`;
  socket.end(`HTTP/1.1 ${statusOf(error)} Refused\r\nConnection: close\r\nContent-Type: ${JSON_TYPE}\r\n`
    + `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
}

function checkRequest({ method, url }: IncomingMessage): void {
  if (url === COMMAND_PATH && method === 'POST') return;
  throw new ZazenError('ZAZEN_COMMAND_INVALID', 'there is nothing here', {
    hint: `POST ${COMMAND_PATH} takes a command`,
  });
}

async function readBody(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  // The connection stays for the answer, also where reading ends before the request does.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    sizeBytes += chunk.length;
    if (sizeBytes > BODY_MAX_BYTES) {
      throw new ZazenError('ZAZEN_COMMAND_TOO_LARGE', `a command has at most ${BODY_MAX_BYTES} bytes`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function parseBody(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString());
  } catch {
    throw new ZazenError('ZAZEN_COMMAND_INVALID', 'the body is no JSON');
  }
}

function statusOf({ code }: ZazenError): number {
  return STATUS_BY_CODE[code] ?? 400;
}

/** One answer: a JSON document, or lines that come as they are known. */
class AnswerWriter {
  readonly #response: ServerResponse;
  readonly #asLines: boolean;
  #progressMillis = -Infinity;

  constructor(response: ServerResponse, asLines: boolean) {
    this.#response = response;
    this.#asLines = asLines;
  }

  /** Begins an answer in lines. */
  begin(): void {
    if (this.#response.headersSent) return;
    this.#response.writeHead(200, { 'content-type': LINES_TYPE, 'cache-control': 'no-store' });
    this.#response.flushHeaders();
  }

  /** @returns false when so much waits for the peer already that it was left out */
  stream(result: unknown): boolean {
    this.begin();
    if (this.#response.writableLength > BACKLOG_MAX_BYTES) return false;
    this.#line({ result });
    return true;
  }

  log(line: string): void {
    if (!this.#asLines || this.#response.writableLength > BACKLOG_MAX_BYTES) return;
    this.begin();
    this.#line({ log: line });
  }

  progress(progress: Progress): void {
    const now = performance.now();
    if (!this.#asLines || now - this.#progressMillis < PROGRESS_MILLIS) return;
    if (this.#response.writableLength > BACKLOG_MAX_BYTES) return;
    this.#progressMillis = now;
    this.begin();
    this.#line({ progress });
  }

  end(result: unknown): void {
    if (!this.#asLines) return this.#document(200, { result });
    this.begin();
    this.#line({ result });
    this.close();
  }

  fail(error: ZazenError): void {
    const answer = { error: describeError(error) };
    if (!this.#response.headersSent) return this.#document(statusOf(error), answer);
    this.#line(answer);
    this.close();
  }

  close(): void {
    this.#response.end();
  }

  #line(answer: Answer): void {
    this.#response.write(`${JSON.stringify(answer)}\n`);
  }

  #document(status: number, answer: Answer): void {
    const body = `${JSON.stringify(answer)}\n`;
    // What is left of a request that was refused is not waited for.
    const isRefused = status !== 200;
    this.#response.writeHead(status, {
      'content-type': JSON_TYPE, 'content-length': Buffer.byteLength(body),
      ...(isRefused ? { connection: 'close' } : {}),
    });
    this.#response.end(body);
  }
}
