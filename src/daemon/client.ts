// The other end of the control socket: sends commands, gives results, and turns what the host refused into the same
// ZazenError that the API would have thrown.

import type { ClientRequest, IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { ZazenError } from '../base/errors.ts';
import type { Command, CommandResults } from './command.ts';
import {
  ANSWER_MAX_BYTES, COMMAND_PATH, CONSOLE_PATH, CONSOLE_PROTOCOL, JSON_TYPE, LINES_TYPE, errorFrom, notUnderstood,
  parseAnswer,
} from './protocol.ts';
import type { Answer, Progress } from './protocol.ts';

/** What connecting to a socket says that is not there, or that nobody has open. */
const NOTHING_THERE: ReadonlySet<string> = new Set(['ENOENT', 'ENOTDIR', 'ECONNREFUSED']);

export interface SendOptions {
  /** Ends the connection; its reason is thrown. */
  readonly signal?: AbortSignal;
  /** Gets a line for each step that takes time. */
  readonly log?: (line: string) => void;
  /** Gets how far a long step has come. */
  readonly onProgress?: (progress: Progress) => void;
}

export class ControlClient {
  readonly socketPath: string;

  constructor(socketPath: string) {
    this.socketPath = socketPath;
  }

  /** Errors: those of the command; ZAZEN_HOST_UNREACHABLE, ZAZEN_HOST_PROTOCOL; `signal.reason`. */
  async send<C extends Command>(command: C, options: SendOptions = {}): Promise<CommandResults[C['command']]> {
    for await (const result of this.follow(command, options)) return result;
    throw this.#lost();
  }

  /** The results of a command that has many; ends when the host says that no more come. Errors as `send`. */
  async *follow<C extends Command>(
    command: C, { signal, log, onProgress }: SendOptions = {},
  ): AsyncIterableIterator<CommandResults[C['command']]> {
    signal?.throwIfAborted();
    const { request } = await import('node:http');
    const body = JSON.stringify(command);
    const sent = request({
      socketPath: this.socketPath, path: COMMAND_PATH, method: 'POST', agent: false,
      headers: { 'content-type': JSON_TYPE, 'content-length': Buffer.byteLength(body), accept: LINES_TYPE },
    });
    const abort = (): void => void sent.destroy();
    signal?.addEventListener('abort', abort);
    try {
      sent.end(body);
      for await (const answer of readAnswers(await responseTo(sent))) {
        if ('error' in answer) throw errorFrom(answer.error);
        if ('log' in answer) log?.(answer.log);
        else if ('progress' in answer) onProgress?.(answer.progress);
        else yield answer.result as CommandResults[C['command']];
      }
    } catch (error) {
      signal?.throwIfAborted();
      throw error instanceof ZazenError ? error : this.#lost(error);
    } finally {
      signal?.removeEventListener('abort', abort);
      sent.destroy();
    }
  }

  /** The console of a domain as bytes both ways. Errors as `send`. */
  async console(domain: string, { signal }: SendOptions = {}): Promise<Duplex> {
    signal?.throwIfAborted();
    const { request } = await import('node:http');
    const sent = request({
      socketPath: this.socketPath, path: `${CONSOLE_PATH}?${new URLSearchParams({ domain })}`, agent: false,
      headers: { connection: 'Upgrade', upgrade: CONSOLE_PROTOCOL },
    });
    const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
    sent.on('upgrade', (_response, socket, head) => {
      socket.on('error', () => socket.destroy());
      if (head.length > 0) socket.unshift(head);
      resolve(socket);
    });
    sent.on('response', (response) => void readRefusal(response).then(reject, reject));
    sent.on('error', reject);
    const abort = (): void => void sent.destroy(new Error('aborted'));
    signal?.addEventListener('abort', abort);
    try {
      sent.end();
      return await promise;
    } catch (error) {
      signal?.throwIfAborted();
      throw error instanceof ZazenError ? error : this.#lost(error);
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  #lost(cause?: unknown): ZazenError {
    const { code, syscall } = (cause ?? {}) as NodeJS.ErrnoException;
    const at = this.socketPath;
    const what = code === 'EACCES' ? `the host at ${at} is not yours`
      : syscall === 'connect' ? `no host listens at ${at}${NOTHING_THERE.has(code!) ? '' : ` (${code})`}` : 'the host has gone';
    return new ZazenError('ZAZEN_HOST_UNREACHABLE', what, { cause, hint: 'zazen daemon starts one' });
  }
}

function responseTo(sent: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    sent.on('response', resolve);
    // Stays, for what comes after the response.
    sent.on('error', reject);
  });
}

/** Of a document or of lines: both are one JSON value a line. */
async function* readAnswers(response: IncomingMessage): AsyncIterableIterator<Answer> {
  let rest: Buffer = Buffer.alloc(0);
  for await (const chunk of response as AsyncIterable<Buffer>) {
    rest = Buffer.concat([rest, chunk]);
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      yield parseAnswer(rest.toString('utf8', 0, end));
      rest = rest.subarray(end + 1);
    }
    if (rest.length > ANSWER_MAX_BYTES) throw notUnderstood();
  }
}

async function readRefusal(response: IncomingMessage): Promise<ZazenError> {
  for await (const answer of readAnswers(response)) {
    if ('error' in answer) return errorFrom(answer.error);
  }
  return notUnderstood();
}
