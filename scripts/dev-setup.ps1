# Windows: the stack runs in WSL2. This makes sure that there is one, clones the project inside it, and hands over to dev-setup.sh.
# Not tried by us on Windows; it is short so that you can read it first.
#
#   powershell -ExecutionPolicy Bypass -File scripts\dev-setup.ps1 -Repository https://github.com/your-org/ballast
param(
    [Parameter(Mandatory = $true)][string]$Repository,
    [string]$Distribution = "Ubuntu"
)
$ErrorActionPreference = "Stop"

if (-not (Get-Command wsl.exe -ErrorAction SilentlyContinue)) {
    throw "WSL is missing. In an administrator's PowerShell: wsl --install -d $Distribution   Then restart, and come again."
}
$installed = (wsl.exe --list --quiet) -replace "`0", "" | Where-Object { $_.Trim() -eq $Distribution }
if (-not $installed) {
    throw "There is no $Distribution in WSL. Run: wsl --install -d $Distribution   Then come again."
}
# Below the home directory of Linux: on the Windows drive every build is many times slower.
$name = [System.IO.Path]::GetFileNameWithoutExtension($Repository)
wsl.exe -d $Distribution -- bash -lc "cd && { [ -d '$name' ] || git clone '$Repository'; } && cd '$name' && scripts/dev-setup.sh"
exit $LASTEXITCODE
