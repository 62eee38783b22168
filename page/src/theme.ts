// light or dark: as the system has it, until it is said here; a reload keeps what was said
import { element } from './app'

const KEPT = 'voxelry.theme'
const system = matchMedia('(prefers-color-scheme: dark)')

export function prepareTheme(): void {
  const button = element('dark')
  show()
  button.onclick = () => {
    localStorage.setItem(KEPT, isDark() ? 'light' : 'dark')
    show()
  }
  system.onchange = show
}

function isDark(): boolean {
  const kept = localStorage.getItem(KEPT)
  return kept ? kept === 'dark' : system.matches
}

function show(): void {
  document.documentElement.style.colorScheme = isDark() ? 'dark' : 'light'
  element('dark').ariaChecked = String(isDark())
}
