// Checks of what comes from a peer: each takes any JSON value and gives it back typed, or refuses it with one line that
// names the field. What is accepted is bounded in size.

import { ZazenError } from '../base/errors.ts';

/** @param what the field, for the error. @throws ZazenError ZAZEN_COMMAND_INVALID */
export type Check<T> = (value: unknown, what: string) => T;

export function refuseCommand(message: string, hint?: string): never {
  throw new ZazenError('ZAZEN_COMMAND_INVALID', message, { hint });
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Without it, a field must be there. */
export function optional<T>(check: Check<T>): Check<T | undefined> {
  return (value, what) => value === undefined ? undefined : check(value, what);
}

export function text(maxLength: number, minLength = 0): Check<string> {
  return (value, what) => {
    if (typeof value !== 'string') return refuseCommand(`${what} must be a string`);
    if (value.length > maxLength) return refuseCommand(`${what} is longer than ${maxLength} characters`);
    if (value.length < minLength) return refuseCommand(`${what} is empty`);
    if (value.includes('\0')) return refuseCommand(`${what} contains a zero byte`);
    return value;
  };
}

export const flag: Check<boolean> = (value, what) =>
  typeof value === 'boolean' ? value : refuseCommand(`${what} must be true or false`);

export function integer(min: number, max: number): Check<number> {
  return (value, what) => typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max
    ? value : refuseCommand(`${what} must be a whole number from ${min} to ${max}`);
}

export function oneOf<const T extends string>(...words: readonly T[]): Check<T> {
  return (value, what) => words.find((word) => word === value) ?? refuseCommand(`${what} must be ${words.join(', ')}`);
}

export function list<T>(check: Check<T>, maxCount: number): Check<readonly T[]> {
  return (value, what) => {
    if (!Array.isArray(value)) return refuseCommand(`${what} must be a list`);
    if (value.length > maxCount) return refuseCommand(`${what} has more than ${maxCount} entries`);
    return value.map((one, i) => check(one, `${what}[${i}]`));
  };
}

export type Checks<T> = { readonly [K in keyof T]-?: Check<T[K]> };

/** An object with these fields and no others. Fields that are optional and not there are left out. */
export function record<T extends object>(checks: Checks<T>): Check<T> {
  return (value, what) => {
    if (!isRecord(value)) return refuseCommand(`${what} must be an object`);
    for (const name of Object.keys(value)) {
      if (!Object.hasOwn(checks, name)) refuseCommand(`${what} has no field "${name.slice(0, 64)}"`);
    }
    const checked: Record<string, unknown> = {};
    for (const [name, check] of Object.entries(checks) as [string, Check<unknown>][]) {
      const given = check(Object.hasOwn(value, name) ? value[name] : undefined, `${what}'s ${name}`);
      if (given !== undefined) checked[name] = given;
    }
    return checked as T;
  };
}
