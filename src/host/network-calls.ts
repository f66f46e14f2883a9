// How the main thread asks the network thread for something (network-thread.ts, network-loop.ts): a method of
// NetworkService by its name. `call` waits for the answer where it stands, as the methods of a host do that are not
// asynchronous; `ask` gives a promise; `post` wants no answer. All arrive in the order in which they were sent.

import { ZazenError, UsageError } from '../base/errors.ts';
import type { NetworkService } from './network-service.ts';

type Methods = { [Name in keyof NetworkService as NetworkService[Name] extends (...args: never[]) => unknown ? Name : never]: NetworkService[Name] };
export type CallName = keyof Methods;
export type CallArguments<Name extends CallName> = Parameters<Methods[Name]>;
export type CallResult<Name extends CallName> = Awaited<ReturnType<Methods[Name]>>;

/** `answer`: `wait` for who waits, or a number that the answer is to have. */
export interface CallMessage {
  readonly name: CallName;
  readonly args: readonly unknown[];
  readonly answer: 'wait' | number | undefined;
}

/** An operator's error. What else is thrown ends the thread, and the host with it. */
interface PlainError {
  readonly isUsage: boolean;
  readonly code: string;
  readonly message: string;
  readonly hint: string | undefined;
}

export type Answer = { readonly value: unknown } | { readonly error: PlainError };

export interface NumberedAnswer {
  readonly answer: number;
  readonly what: Answer;
}

/** @throws what is no operator's error */
export function answerOf(error: unknown): Answer {
  if (!(error instanceof ZazenError)) throw error;
  const { code, message, hint } = error;
  return { error: { isUsage: error instanceof UsageError, code, message, hint } };
}

/** @throws ZazenError that was thrown there */
export function valueOf(answer: Answer): unknown {
  if (!('error' in answer)) return answer.value;
  const { isUsage, code, message, hint } = answer.error;
  throw isUsage ? new UsageError(message, hint) : new ZazenError(code, message, hint === undefined ? {} : { hint });
}
