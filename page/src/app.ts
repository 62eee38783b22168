// what all parts of the page share: the state, the picture, and a line to the user
import { Scene } from './scene'
import type { Answer, Header, State } from './server'

const MICROSCOPIC = 0.05 // mm, below which lengths are said in µm

export const element = <T extends HTMLElement>(id: string) => document.getElementById(id) as T

/** An element with what it is and what it holds. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K, own: Partial<HTMLElementTagNameMap[K]> = {}, ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = Object.assign(document.createElement(tag), own)
  made.append(...children)
  return made
}

export const app = {
  state: null as unknown as State,
  scene: null as unknown as Scene,
  current: -1,
  header: null as Header | null,
  get answer(): Answer | null { return this.state?.answers[this.current] ?? null },
}

/** Whether an answer is by another model than the one that would answer now. */
export const former = (answer: Answer | undefined | null) => !!answer?.model && answer.model !== app.state.model

export function say(text: string, fault = false): void {
  const message = element('message')
  message.textContent = text
  message.hidden = text === ''
  message.classList.toggle('fault', fault)
}

/** Work whose failure is said in a line. */
export const attempt = (work: () => Promise<void> | void) => async () => {
  try {
    await work()
  } catch (error) {
    say((error as Error).message, true)
  }
}

export const microscopic = () => Math.max(...(app.header?.spacing ?? [1])) < MICROSCOPIC
export const unit = () => (microscopic() ? 'µm' : 'mm')

/** Lengths in mm in the unit of the image that is shown. */
export const lengths = (mm: number[]) => mm.map((one) => (microscopic() ? 1000 * one : one).toFixed(1)).join(', ')

/** A volume in mm³, or an area in mm², of the image that is shown, with its unit. */
export function size(value: number): string {
  const rank = app.header?.shown.length ?? 3
  const [scaled, name] = microscopic() ? [value * 1000 ** rank, 'µm'] : rank === 3 && value >= 1000 ? [value / 1000, 'ml'] : [value, 'mm']
  return `${Number(scaled.toPrecision(3))} ${name}${name === 'ml' ? '' : rank === 3 ? '³' : '²'}`
}
