// Where control sockets are: one directory that belongs to the user alone, one socket for each host process.
//
//   $ZAZEN_RUNTIME_DIR, else $XDG_RUNTIME_DIR/zazen if $XDG_RUNTIME_DIR is there, else /tmp/zazen-UID
//                    directory, mode 0700, the user's own
//     PID.sock       socket, mode 0600
//
// A host that was killed leaves its socket behind. It is stale when no process has its PID and nobody listens; whoever
// looks for hosts removes it.

import { existsSync } from 'node:fs';
import { lstat, mkdir, readdir, unlink } from 'node:fs/promises';
import { connect } from 'node:net';
import { join, resolve } from 'node:path';
import { ZazenError } from '../base/errors.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

const SOCKET_NAME = /^([1-9]\d{0,9})\.sock$/;
/** Of sockaddr_un on Linux, with its terminating zero. macOS has 104. */
const SOCKET_PATH_BYTES = 104;
const OTHERS = 0o077;

export function runtimeDirectory(env: Environment): string {
  if (env['ZAZEN_RUNTIME_DIR']) return resolve(env['ZAZEN_RUNTIME_DIR']);
  const session = env['XDG_RUNTIME_DIR'];
  // It may name the directory of a login that is over, or of another user.
  if (session && existsSync(session)) return resolve(session, 'zazen');
  return `/tmp/zazen-${process.getuid!()}`;
}

/**
 * Makes the directory if it is not there, and makes sure that nobody else can put a socket into it.
 * @throws ZazenError ZAZEN_RUNTIME_DIR
 */
export async function openRuntimeDirectory(env: Environment): Promise<string> {
  const directory = runtimeDirectory(env);
  try {
    // Not its parents: a name that is mistyped should not make a tree.
    await mkdir(directory, { mode: 0o700 });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== 'EEXIST') throw runtimeError(directory, message, error);
  }
  await checkRuntimeDirectory(directory);
  return directory;
}

async function checkRuntimeDirectory(directory: string): Promise<void> {
  const facts = await lstat(directory).catch((error: Error) => {
    throw runtimeError(directory, error.message, error);
  });
  if (!facts.isDirectory()) throw runtimeError(directory, 'it is no directory');
  if (facts.uid !== process.getuid!()) throw runtimeError(directory, 'it belongs to another user');
  if ((facts.mode & OTHERS) === 0) return;
  throw runtimeError(directory, 'other users may enter it', undefined, `chmod 700 ${directory}`);
}

function runtimeError(directory: string, why: string, cause?: unknown, hint?: string): ZazenError {
  return new ZazenError('ZAZEN_RUNTIME_DIR', `${directory} cannot hold control sockets: ${why}`, {
    cause, hint: hint ?? 'name another directory in ZAZEN_RUNTIME_DIR',
  });
}

export function socketPathFor(directory: string, pid: number): string {
  return join(directory, `${pid}.sock`);
}

/** @param elsewhere what to do when it cannot be there. @throws ZazenError ZAZEN_SOCKET_PATH */
export function assertSocketPath(path: string, elsewhere: string): void {
  if (Buffer.byteLength(path) < SOCKET_PATH_BYTES) return;
  throw new ZazenError('ZAZEN_SOCKET_PATH', `${path}: the path of a socket has fewer than ${SOCKET_PATH_BYTES} bytes`, {
    hint: elsewhere,
  });
}

export interface FoundSocket {
  readonly path: string;
  readonly pid: number;
}

/**
 * Sockets of hosts that run, by PID; stale ones are removed.
 * @throws ZazenError ZAZEN_RUNTIME_DIR when the directory is there, and cannot be read or others could have put something into it
 */
export async function findSockets(env: Environment): Promise<FoundSocket[]> {
  const directory = runtimeDirectory(env);
  const names = await readdir(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw runtimeError(directory, error.message, error);
  });
  if (names === undefined) return [];
  await checkRuntimeDirectory(directory);
  const found = await Promise.all(names.map(async (name): Promise<FoundSocket[]> => {
    const match = SOCKET_NAME.exec(name);
    if (match === null) return [];
    const socket = { path: join(directory, name), pid: Number(match[1]) };
    if (await isListening(socket.path)) return [socket];
    // A host that is about to listen has its socket already; its process lives.
    if (!isAlive(socket.pid)) await unlink(socket.path).catch(() => {});
    return [];
  }));
  return found.flat().toSorted((a, b) => a.pid - b.pid);
}

/** Whether somebody takes connections there. */
export function isListening(path: string): Promise<boolean> {
  return new Promise((settle) => {
    const socket = connect(path);
    const end = (listening: boolean): void => {
      socket.destroy();
      settle(listening);
    };
    // EAGAIN: it listens, and has too much to do.
    socket.on('error', (error: NodeJS.ErrnoException) => end(error.code === 'EAGAIN'));
    socket.on('connect', () => end(true));
  });
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
